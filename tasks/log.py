"""The lines that a run says: opaque ids, counts and seconds on the logger `slugline`."""

import logging

LOGGER = logging.getLogger("slugline")


def say(line: str) -> None:
    """Log one line at INFO; whoever runs the flow decides where it goes."""
    LOGGER.info(line)
