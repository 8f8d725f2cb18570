"""The search for a step with the rule, the target and the budget of a request, on its search split."""

from collections.abc import Callable, Sequence

from contracts.errors import ModelError
from unlearning.families import Split
from unlearning.forgetting import Forgetting
from unlearning.search import StepSearch, smallest_step


class StepSearches:
    """`smallest_step` with the rule, the target and the budget of a split's request, as often as wanted.

    What is known without a step is measured once for all searches: a vision-language model answers for it.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._unedited: dict[tuple[int, ...], Forgetting] = {}

    def search(
        self,
        observe: Callable[[float], Forgetting | None],
        targets: Sequence[int],
        first: float,
        least: float,
    ) -> StepSearch[Forgetting]:
        """Search a step for these targets; see `smallest_step`.

        Raises:
            ModelError: the model gives features that are not finite as it is.
        """
        method = self._split.method
        return smallest_step(
            observe,
            lambda seen: seen.worst <= method.forget_target,
            rule=method.step_rule,
            first=first,
            steps=method.search_steps,
            at_zero=self._known(tuple(targets)).margin,
            least=least,
        )

    def _known(self, targets: tuple[int, ...]) -> Forgetting:
        if targets not in self._unedited:
            known = self._split.view({}).forgetting(targets)
            if known is None:
                raise ModelError("the model gives features that are not finite on the search split")
            self._unedited[targets] = known
        return self._unedited[targets]


def smallest_or_closest(search: StepSearch[Forgetting]) -> tuple[float, Forgetting]:
    """The smallest step that reached the target, else the one that came closest, and what was seen there.

    Args:
        search: with at least one step tried.
    """
    if search.smallest is not None:
        return next(trial for trial in search.tried if trial[0] == search.smallest)
    return min(search.tried, key=lambda trial: (trial[1].worst, trial[1].rate, trial[0]))
