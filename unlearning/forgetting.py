"""How well what is to be forgotten is still known on a search split, and what is retained."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Forgetting:
    """How well the targets are known on the search split.

    Attributes:
        rates: by target, the share of its items that are known.
        rate: over the items of all targets.
        score: a continuous figure of the family, over the same items (`contracts.values.StepTrial`).
        margin: continuous in the weights, negative exactly where every rate is at most `forget_target`.
    """

    rates: Mapping[int, float]
    rate: float
    score: float
    margin: float

    @classmethod
    def of(
        cls,
        margins: Tensor,
        scores: Tensor,
        labels: Tensor,
        targets: Sequence[int],
        forget_target: float,
    ) -> "Forgetting":
        """From margins and scores (n,) of the targets' items, and their labels (n,).

        A margin is not negative while its item is known: a tie counts as known, the reading that is worse
        for us.
        """
        own = {target: margins[(labels == target).to(margins.device)] for target in targets}
        return cls(
            rates={target: float((m >= 0).double().mean()) for target, m in own.items()},
            rate=float((margins >= 0).double().mean()),
            score=float(scores.double().mean()),
            margin=max(_deciding(m, forget_target) for m in own.values()),
        )

    @property
    def worst(self) -> float:
        """The rate of the best-known target: what a joint step has to bring down."""
        return max(self.rates.values())


def _deciding(margins: Tensor, forget_target: float) -> float:
    """Of a target's item margins (n,) the one that decides: as many larger ones may stay known."""
    # Rounding up what the product lost must not allow all of them: a target is below 1.
    allowed = min(int(forget_target * len(margins) + 1e-9), len(margins) - 1)
    return float(margins.sort(descending=True).values[allowed])


def mean_if(found: Iterable[Tensor | None], n: int, enough: Callable[[float], bool]) -> float | None:
    """Mean over n items, or None if, before a part is looked at, the most that it can be is not `enough`.

    Args:
        found: lazily, part by part, what was found of each item, 0..1 (or bool); None where the model's
            outputs are not finite, which makes the mean 0.
        n: items of all parts.
        enough: asked of 1.0 before the first part.
    """
    if not enough(1.0):
        return None
    total, left = 0.0, n
    for part in found:
        if part is None:
            return 0.0
        total, left = total + float(part.sum()), left - len(part)
        if left and not enough((total + left) / n):
            return None
    return total / n
