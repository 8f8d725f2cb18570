"""How far to step along a direction, asked of pictures: until an independent judge sees the concept no more.

The search for CLIP asks the model itself what it sees.  A diffusion model is asked to draw, always from
the same seeds, and a judge that never saw it looks at the pictures.  As there, the step is the smallest
one that reaches the target, found on a continuous margin (`unlearning.search`), and of several layers the
one is taken that keeps most.

Shapes: N pictures, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Axis, StepTrial
from unlearning.drawing import draw
from unlearning.families.clip import tower_of
from unlearning.families.diffusion import DiffusionModel
from unlearning.inplace import edited
from unlearning.layer_steps import LayerStep, best_layer
from unlearning.search import smallest_step
from unlearning.stepping import FIRST_RELATIVE_STEP

Judging = Callable[[NDArray[np.uint8]], Tensor]
"""Logits (N, C) of pictures (N, S, S, 3) on the axis that is asked about."""


@dataclass(frozen=True)
class Cells:
    """Pictures to draw: N prompts, their seeds, and the class that each prompt names."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompts or not len(self.prompts) == len(self.seeds) == len(self.labels):
            raise InputError(
                f"{len(self.prompts)} prompts do not match {len(self.seeds)} seeds, {len(self.labels)} labels"
            )


@dataclass(frozen=True)
class Seen:
    """What the judge recognises in drawn pictures: the share, and by how much.

    `margin` is negative exactly where the share is at most the target.
    """

    rate: float
    margin: float


@dataclass(frozen=True)
class DrawnSearch:
    """The search split of a diffusion model.

    Attributes:
        forget: prompts that name what is to be forgotten.
        retain: prompts that name what is to be kept.
        judging: the judge's logits.
        forget_at: a picture still shows its concept if that is among the judge's first so many classes.
        forget_target: share of forget pictures that may still show it.
        budget: steps tried for a layer.
        steps: of the sampler, where they are not the model's own.
    """

    forget: Cells
    retain: Cells
    judging: Judging
    forget_at: int = 1
    forget_target: float = 0.0
    budget: int = 10
    steps: int | None = None

    def seen(self, model: DiffusionModel, cells: Cells) -> Seen | None:
        """What the judge recognises in pictures of the model as it is; None if they are not finite."""
        try:
            drawn = draw(model, cells.prompts, cells.seeds, steps=self.steps)
        except ModelError:
            return None
        logits, labels = self.judging(drawn), torch.tensor(cells.labels)
        own = logits.gather(1, labels[:, None])[:, 0]
        others = logits.scatter(1, labels[:, None], -torch.inf)
        margins = own - others.topk(self.forget_at, dim=1).values[:, -1]
        allowed = int(self.forget_target * len(margins))  # so many of the largest margins may stay positive
        worst = margins.sort(descending=True).values[min(allowed, len(margins) - 1)]
        return Seen(float((margins >= 0).double().mean()), float(worst))

    def search_layer(
        self, model: DiffusionModel, concept: str, layer: str, direction: Tensor, at_zero: Seen | None = None
    ) -> LayerStep | None:
        """The smallest step along a direction that reaches the target, else the closest; None if all break.

        Args:
            model: at its original weights, which come back bit for bit.
            concept: its opaque id.
            layer: name of the weight.
            direction: of the weight's shape; ascends a forget loss.
            at_zero: `seen` of the forget prompts without a step, if it is known.

        Raises:
            ModelError: the weight or the direction is zero, or the model's own pictures are not finite.
        """
        sizes = [float(t.detach().double().norm()) for t in (model.parameters[layer], direction)]
        if not all(isfinite(size) and size > 0 for size in sizes):
            raise ModelError(f"{layer} cannot be stepped: it or its direction is zero or not finite")
        before = at_zero or self.seen(model, self.forget)
        if before is None:
            raise ModelError("the model's own pictures are not finite")

        def observe(step: float) -> Seen | None:
            with edited(model.parameters, {layer: direction * step}):
                return self.seen(model, self.forget)

        found = smallest_step(
            observe,
            lambda seen: seen.margin < 0,
            rule="margin",
            first=FIRST_RELATIVE_STEP * sizes[0] / sizes[1],
            steps=self.budget,
            at_zero=before.margin,
        )
        if not found.tried:
            return None
        best = found.smallest or min(found.tried, key=lambda t: (t[1].rate, t[1].margin, t[0]))[0]
        with edited(model.parameters, {layer: direction * best}):
            kept = self.seen(model, self.retain)
        name = layer.partition(".")[2] if layer.startswith("clip") else "visual."
        trials = tuple(
            StepTrial(
                concept,
                layer,
                tower_of(name),
                step,
                seen.rate,
                0.0,
                kept.rate if kept and step == best else None,
            )
            for step, seen in found.tried
        )
        rate = next(t.forget_rate for t in trials if t.step_size == best)
        reached = found.smallest is not None
        return LayerStep(
            concept,
            layer,
            best,
            reached,
            rate,
            kept.rate if kept else 0.0,
            best * sizes[1] / sizes[0],
            trials,
        )


def search_layers(
    model: DiffusionModel,
    search: DrawnSearch,
    concept: str,
    directions: Mapping[str, Tensor],
    progress: Callable[[int, int], None] | None = None,
) -> LayerStep:
    """The best step over all layers that have a direction (`layer_steps.best_layer`); weights stay.

    Raises:
        ModelError: no layer can be stepped without breaking the model.
    """
    before, steps = search.seen(model, search.forget), []
    for done, (layer, direction) in enumerate(directions.items(), start=1):
        step = search.search_layer(model, concept, layer, direction, before)
        steps += [] if step is None else [step]
        if progress is not None:
            progress(done, len(directions))
    return best_layer(steps)


def cells(prompts: Sequence[str], seeds: Sequence[int], labels: Sequence[int]) -> Cells:
    """Every prompt with every seed; `labels` name each prompt's class."""
    pairs = [(prompt, seed, label) for prompt, label in zip(prompts, labels, strict=True) for seed in seeds]
    return Cells(tuple(p for p, _, _ in pairs), tuple(s for _, s, _ in pairs), tuple(c for _, _, c in pairs))


def logits_of(axis: Axis, judge: Callable[[NDArray[np.uint8]], object]) -> Judging:
    """The part of a `Judge`'s answer that is about an axis."""

    def asked(images: NDArray[np.uint8]) -> Tensor:
        logits: Tensor = getattr(judge(images), f"{axis}s")
        return logits

    return asked
