"""The step found in a layer, which layer is taken, and several concepts' steps together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from contracts.errors import ModelError
from contracts.values import StepTrial

Directions = Mapping[str, Mapping[str, Tensor]]
"""Direction by concept id and layer; neither it nor the weight may have norm zero."""


@dataclass(frozen=True)
class LayerStep:
    """The best step of one concept in one layer: the smallest that reached the target, else the closest one.

    `worst_rate` is that of its best-known target, `relative_change` ||update|| / ||weight||.
    """

    concept: str
    layer: str
    step_size: float
    reached: bool
    worst_rate: float
    retained_rate: float
    relative_change: float
    trials: tuple[StepTrial, ...]

    @property
    def preference(self) -> tuple[float, float]:
        """The smaller, the better, of steps that reached the target: keep more, then change less."""
        return -self.retained_rate, self.relative_change


@dataclass(frozen=True)
class Combination:
    """One step per concept and a common factor on them: what is added to the weights."""

    steps: tuple[LayerStep, ...]
    factor: float = 1.0

    def updates(self, directions: Directions, multiple: float = 1.0) -> dict[str, Tensor]:
        """sum over concepts of step * direction, by layer, times `multiple`."""
        total: dict[str, Tensor] = {}
        for step in self.steps:
            update = directions[step.concept][step.layer] * (step.step_size * self.factor * multiple)
            total[step.layer] = total[step.layer] + update if step.layer in total else update
        return total


def best_layer(steps: Sequence[LayerStep]) -> LayerStep:
    """Of the layers that reached the target the one that keeps most; equal ones: the smaller relative change.

    If none reached it, the one that came closest.

    Raises:
        ModelError: there is no layer to choose from.
    """
    if not steps:
        raise ModelError("a concept has no layer that can be stepped without breaking the model")
    reached = [step for step in steps if step.reached]
    if reached:
        return min(reached, key=lambda s: s.preference)
    return min(steps, key=lambda s: (s.worst_rate, -s.retained_rate, s.relative_change))
