"""The search for a step with the rule, the target and the budget of a request, on its search split."""

from collections.abc import Callable

from contracts.values import Method
from unlearning.forgetting import Forgetting
from unlearning.search import StepSearch, smallest_step


def search_step(
    method: Method,
    unedited: Forgetting,
    observe: Callable[[float], Forgetting | None],
    first: float,
    least: float,
) -> StepSearch[Forgetting]:
    """`smallest_step` with the rule, the target and the budget of a method; `unedited`: without a step."""
    return smallest_step(
        observe,
        lambda seen: seen.worst <= method.forget_target,
        rule=method.step_rule,
        first=first,
        steps=method.search_steps,
        at_zero=unedited.margin,
        least=least,
    )


def smallest_or_closest(search: StepSearch[Forgetting]) -> tuple[float, Forgetting]:
    """The smallest step that reached the target, else the one that came closest, and what was seen there.

    Args:
        search: with at least one step tried.
    """
    if search.smallest is not None:
        return next(trial for trial in search.tried if trial[0] == search.smallest)
    return min(search.tried, key=lambda trial: (trial[1].worst, trial[1].rate, trial[0]))
