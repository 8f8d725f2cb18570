"""How far: the smallest step that reaches a target, by bisecting (the paper) or by root-finding."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, Literal, Protocol, TypeVar

# Observations by which a search with margins may fall behind bisecting its first bracket.
SLACK = 4


class Observation(Protocol):
    """What is seen at a step; its margin is negative where the target is reached."""

    @property
    def margin(self) -> float:
        """Continuous in the step."""


T = TypeVar("T")
Seen = TypeVar("Seen", bound=Observation)


@dataclass(frozen=True)
class StepSearch(Generic[T]):
    """Steps tried, in order, each with what was seen there, and the smallest one that reached the target."""

    tried: tuple[tuple[float, T], ...]
    smallest: float | None


def smallest_step(
    observe: Callable[[float], Seen | None],
    reached: Callable[[Seen], bool],
    *,
    rule: Literal["margin", "bisection"],
    first: float,
    steps: int,
    at_zero: float,
    least: float = 0.0,
) -> StepSearch[Seen]:
    """The smallest step of at least `least` that reaches the target: `least` itself, then upwards from there.

    Args:
        observe: measures one step; None if the features are not finite there.
        reached: whether an observation meets the target.
        rule: whether margins or `reached` lead the search beyond `least`.
        first: the first step tried where there is no `least`, positive and finite; after a `least` twice
            as much is tried.
        steps: budget of observations, `least` included.
        at_zero: the margin without a step.
        least: 0 for any step.
    """
    tried: tuple[tuple[float, Seen], ...] = ()
    if least > 0.0:
        seen = observe(least)
        if seen is None:
            return StepSearch((), None)
        tried = ((least, seen),)
        if reached(seen):
            return StepSearch(tried, least)
        first, at_zero = 2 * least, seen.margin
    budget = steps - len(tried)
    if rule == "bisection":
        beyond = smallest_reaching(observe, reached, first, budget, low=least)
    else:
        beyond = smallest_crossing(observe, lambda seen: seen.margin, first, budget, at_zero, low=least)
    return StepSearch((*tried, *beyond.tried), beyond.smallest)


def smallest_reaching(
    observe: Callable[[float], T | None],
    reached: Callable[[T], bool],
    first: float,
    steps: int,
    low: float = 0.0,
) -> StepSearch[T]:
    """Double from `first` until the target is reached, then bisect; at most `steps` observations.

    SLUG's search (arXiv 2407.11867, section 3.3), except that a step so large that the model breaks
    (`observe` returns None) bounds the search from above without counting as success.

    Args:
        observe: measures one step; None if the features are not finite there.
        reached: whether an observation meets the target.
        first: the first step, positive and finite.
        steps: budget of observations.
        low: a step below `first` that is known not to reach it.
    """
    tried: list[tuple[float, T]] = []
    high, smallest = None, None
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


def smallest_crossing(
    observe: Callable[[float], T | None],
    margin: Callable[[T], float],
    first: float,
    steps: int,
    at_low: float,
    precision: float = 0.02,
    low: float = 0.0,
) -> StepSearch[T]:
    """The step at which a continuous margin turns negative, by extrapolating, then regula falsi (Illinois).

    Bisecting on "reached or not" halves the bracket with each observation; a margin also says by how
    much it was missed, so a handful of observations pins the same step.  As in `smallest_reaching`, a
    step that breaks the model bounds the search from above, and what is returned was observed.

    Where the margin is flat on one side of a cliff, regula falsi moves one end by tiny steps.  So, as in ITP
    (Oliveira and Takahashi, ACM TOMS 47:1, 2020), the bracket is bisected whenever another step could leave
    it wider than bisecting the first bracket would have left it `SLACK` observations ago.  With w the width
    of the first bracket and r > 0 a step that all brackets hold (where the margin crosses zero),

        observations <= those up to the first bracket + SLACK + ceil(log2(w / (precision * r)))

    Proof: n observations later the bracket is at most w * 2^(SLACK - n) wide.  True for n = 0.  If it is at
    most half of that, any step inside keeps the bound for n + 1, for brackets only shrink; else the middle
    halves it.  Once it is no wider than precision * r the search ends, for its upper end is at least r.

    Args:
        observe: measures one step; None if the features are not finite there.
        margin: of an observation; below zero means reached.
        first: the first step, positive and finite.
        steps: budget of observations.
        at_low: the margin at `low`.
        precision: the search ends when the bracket is narrower than this share of its upper end.
        low: a step below `first` whose margin is known; 0 is no step.
    """
    tried: list[tuple[float, T]] = []
    low_margin = at_low
    high: float | None = None
    high_margin: float | None = None  # None: the model breaks at `high`
    smallest = None
    step, above = first, False
    widest = float("inf")  # that the bracket may be after the next observation
    for _ in range(steps):
        if not isfinite(step) or step in (low, high):
            break
        seen = observe(step)
        found = None if seen is None else margin(seen)
        if seen is not None:
            tried.append((step, seen))
        was_above, above = above, found is None or found < 0.0
        before, before_margin = low, low_margin
        if above:
            if was_above:
                low_margin /= 2  # Illinois: an end that stays twice counts half
            high, high_margin = step, found
            smallest = smallest if found is None else step
        else:
            if not was_above and high_margin is not None:
                high_margin /= 2
            low, low_margin = step, found or 0.0
        if high is None:
            step = _further(before, before_margin, low, low_margin)
            continue
        if high - low <= precision * high:
            break
        widest = min(widest, (high - low) * 2**SLACK) / 2
        if high - low > widest:
            step = (low + high) / 2
        else:
            # Aim just past the crossing, so that a good guess closes the bracket from its other side.
            past = 1 - 0.4 * precision if above else 1 + 0.4 * precision
            step = past * _between(low, low_margin, high, high_margin)
            if not low < step < high:
                step = (low + high) / 2
    return StepSearch(tuple(tried), smallest)


def _further(before: float, before_margin: float, step: float, margin: float) -> float:
    """Where the line through the last two observations crosses zero, kept within 1.5 to 8 steps."""
    slope = (before_margin - margin) / (step - before)
    predicted = step + 1.1 * margin / slope if slope > 0.0 else 8 * step
    return min(max(predicted, 1.5 * step), 8 * step)


def _between(low: float, low_margin: float, high: float, high_margin: float | None) -> float:
    """The secant's zero, kept off the ends; the middle where the model breaks at the upper end."""
    if high_margin is None or low_margin - high_margin <= 0.0:
        return (low + high) / 2
    zero = low + (high - low) * low_margin / (low_margin - high_margin)
    edge = 0.05 * (high - low)
    return min(max(zero, low + edge), high - edge)
