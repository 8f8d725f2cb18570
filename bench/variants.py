"""The methods of a bench, as its `--methods` picks them."""

from collections.abc import Iterable

from contracts.errors import InputError


def picked_from(told: str, known: Iterable[str]) -> list[str]:
    """Labels separated by semicolons; all known ones if none is given.

    Raises:
        InputError: a label is unknown; the message lists the known ones.
    """
    known = list(known)
    labels = [label.strip() for label in told.split(";") if label.strip()] or known
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise InputError(f"unknown method {unknown[0]!r}; there are {'; '.join(known)}")
    return labels
