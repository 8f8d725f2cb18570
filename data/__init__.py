"""The DVC-tracked sets, their format, and the code that builds, pins, reads and checks them."""
