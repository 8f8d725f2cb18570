"""The `slugline` command.  Commands import what they need when they run: `--help` answers at once."""
