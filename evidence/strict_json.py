"""JSON as evidence must be read: one meaning only."""

import json
import math
from typing import Any

# Longer integers cannot be counts, and would overflow the arithmetic that rechecks them.
_MAX_DIGITS = 15


def parse(content: bytes) -> Any:
    """Parse JSON, refusing what two readers could understand differently.

    Raises:
        ValueError: not UTF-8 JSON, a key is given twice (readers keep the first or the last), a
            number is NaN, infinite or absurdly long, or the nesting is too deep.
    """
    try:
        return json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique_keys,
            parse_constant=_no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _short(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError("a number is too long")
    return int(text)
