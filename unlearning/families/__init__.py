"""Model families: one adapter per family, each hiding how its models load, encode and name weights."""
