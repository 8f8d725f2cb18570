"""How far: the smallest step that reaches a target, by doubling and bisecting."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class StepSearch(Generic[T]):
    """Steps tried, in order, each with what was seen there, and the smallest one that reached the target."""

    tried: tuple[tuple[float, T], ...]
    smallest: float | None


def smallest_reaching(
    observe: Callable[[float], T | None], reached: Callable[[T], bool], first: float, steps: int
) -> StepSearch[T]:
    """Double from `first` until the target is reached, then bisect; at most `steps` observations.

    SLUG's search (arXiv 2407.11867, section 3.3), except that a step so large that the model breaks
    (`observe` returns None) bounds the search from above without counting as success.

    Args:
        observe: measures one step; None if the features are not finite there.
        reached: whether an observation meets the target.
        first: the first step, positive and finite.
        steps: budget of observations.
    """
    tried: list[tuple[float, T]] = []
    low, high, smallest = 0.0, None, None
    step = first
    for _ in range(steps):
        if not isfinite(step) or step in (low, high):
            break
        seen = observe(step)
        if seen is not None:
            tried.append((step, seen))
        if seen is not None and reached(seen):
            high = smallest = step
        elif seen is None:
            high = step
        else:
            low = step
        step = 2 * step if high is None else (low + high) / 2
    return StepSearch(tuple(tried), smallest)
