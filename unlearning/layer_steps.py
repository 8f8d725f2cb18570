"""The step found in a layer, which layer is taken, and several concepts' steps together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.errors import ModelError
from contracts.values import StepTrial

Updates = Mapping[str, Tensor]
"""What is added to each of some tensors."""

Directions = Mapping[str, Mapping[str, Updates]]
"""By concept id and layer, what a unit step adds: to the layer's weight, and to its bias if that moves along.

Neither a weight nor what is added to it may have norm zero.
"""


def scaled(updates: Updates, factor: float) -> dict[str, Tensor]:
    """`factor` times what is added."""
    return {name: update * factor for name, update in updates.items()}


def relative_change(update: Tensor, tensor: Tensor, weight: Tensor) -> float:
    """||update|| / ||tensor||; of a bias that was zero, / ||weight|| of its layer.

    Of a layer that was all zero there is nothing to compare with: it is 1, all of it is new.
    """
    change = norm(update)
    return change / (norm(tensor) or norm(weight) or change)


def norm(tensor: Tensor) -> float:
    """In fp64: norms of millions of small squares."""
    return float(torch.linalg.vector_norm(tensor.detach().double()))


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
        """sum over concepts of step * direction, by tensor, times `multiple`."""
        total: dict[str, Tensor] = {}
        for step in self.steps:
            own = scaled(directions[step.concept][step.layer], step.step_size * self.factor * multiple)
            for name, update in own.items():
                total[name] = total[name] + update if name in total else update
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
