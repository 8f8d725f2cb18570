"""The range check of every method's options: one strictness for all of them."""

from math import isfinite
from operator import ge, gt, le, lt
from typing import Any

from contracts.errors import InputError


def check_numbers(
    options: Any,
    *names: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse options that are not finite or lie out of their range.

    Of a tuple every number counts, and there must be one; None is an option that is left out, and passes.

    Args:
        options: holds what is checked, as attributes.
        names: of the options that have this range.
        above: lower bound that is itself refused; of this and the others None is no bound.
        at_least: lower bound that is allowed.
        below: upper bound that is itself refused.
        at_most: upper bound that is allowed.

    Raises:
        InputError: the message names the option, its range and the value.
    """
    bounds = (
        ("above", gt, above),
        ("at least", ge, at_least),
        ("below", lt, below),
        ("at most", le, at_most),
    )
    asked = [(words, holds, bound) for words, holds, bound in bounds if bound is not None]
    wanted = [f"{words} {bound:g}" for words, _, bound in asked]
    for name in names:
        value = getattr(options, name)
        if value is None:
            continue
        numbers = value if isinstance(value, tuple) else (value,)
        if not numbers:
            raise InputError(f"{name} must hold at least one number, got {value}")
        finite = all(isfinite(number) for number in numbers)
        if not finite or not all(holds(number, bound) for number in numbers for _, holds, bound in asked):
            said = " and ".join(wanted if finite else ["finite", *wanted])
            raise InputError(f"{name} must be {said}, got {value}")
