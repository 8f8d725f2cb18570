"""Unlearning by training, tuned fairly: AdamW steps with a stop check after each, several learning rates.

The SLUG paper compares with baselines that were looked at once an epoch at one of two learning
rates, so that they had overshot before anybody looked.  Here every optimiser step is followed by
the same measurement that drives our own searches, the run ends at the first step that reaches the
target, and the learning rate is the one of a grid that keeps most on the search split.

The optimiser is that of the paper's comparison (AdamW, weight decay 0.1, batch 32), with two
differences: the model stays in eval() mode, so that BatchNorm statistics never move, and the rate
is constant, because a cosine schedule is tied to a length that a stopped run does not have.

Shapes: B pairs of a batch, D embedding width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import Generic, TypeVar

import torch
from torch import Tensor

from contracts.errors import InputError
from contracts.values import Method, StepTrial
from unlearning.attempts import Attempt, Judge, assign, restored, settle, trainable
from unlearning.families import Editable, Forgetting, Request
from unlearning.families.clip import ClipModel, Images
from unlearning.inplace import requiring_grad
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs


@dataclass(frozen=True)
class Budget:
    """How much training a method may do.

    learning_rates: the grid; every rate starts anew from the original weights.
    steps: optimiser steps for each rate; the run ends earlier where the target is reached.
    batch: pairs of each set in a step; a smaller set is taken whole.
    weight_decay: of AdamW, on matrices and kernels only.
    """

    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    steps: int = 50
    batch: int = 32
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        if not self.learning_rates or not all(isfinite(r) and r > 0 for r in self.learning_rates):
            raise InputError(f"learning_rates must be positive, at least one, got {self.learning_rates}")
        if self.steps < 1 or self.batch < 2:
            raise InputError(
                f"steps must be at least 1 and batch at least 2, got {self.steps} and {self.batch}"
            )
        if self.weight_decay < 0:
            raise InputError(f"weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features (B, D) of images and of their captions, with a graph."""

    image: Tensor
    text: Tensor


class Batches:
    """Seeded batches of the forget and the retain set, encoded under the weights of the moment.

    Sets are walked through in a new order each time, whole batches only: the contrastive loss depends
    on their size.

    Attributes:
        generator: for whatever else a loss draws; the same seed, the same run.
        logit_scale: factor on cosines, a scalar.
    """

    def __init__(self, model: ClipModel, inputs: UnlearnInputs, batch: int) -> None:
        self._model = model
        self.generator = torch.Generator().manual_seed(inputs.seed)
        self.logit_scale = model.logit_scale
        self._forget = self._walk(inputs.forget_images, inputs.forget_captions, batch)
        self._retain = self._walk(inputs.retain_images, inputs.retain_captions, batch)

    def forget(self) -> Pairs:
        """The next batch of the forget set."""
        return next(self._forget)

    def retain(self) -> Pairs:
        """The next batch of the retain set."""
        return next(self._retain)

    def _walk(self, images: Images, captions: Sequence[str], batch: int) -> Iterator[Pairs]:
        pixels, tokens = torch.as_tensor(images), self._model.tokenize(captions)
        whole = max(len(pixels) // batch, 1) * batch
        while True:
            order = torch.randperm(len(pixels), generator=self.generator)
            for rows in torch.split(order[:whole], batch):
                yield Pairs(
                    self._model.image_features(self._model.preprocess(pixels[rows])),
                    self._model.text_features(tokens[rows]),
                )


Drawn = TypeVar("Drawn")
"""Whatever a loss draws its batches from, made anew for each learning rate."""


def train(
    model: Editable,
    inputs: Request,
    method: Method,
    budget: Budget,
    batches: Callable[[], Drawn],
    loss: Callable[[Drawn], Tensor],
    profile: Profile,
    progress: Progress,
    masks: Mapping[str, Tensor] | None = None,
) -> Outcome:
    """Train once per learning rate, choose on the search split, and edit the model in place.

    An edit's and a trial's step size is the learning rate times the optimiser steps taken: AdamW
    moves an entry by about the learning rate at each.

    Args:
        model: at its original weights.
        inputs: of the request.
        method: names towers and target.
        budget: rates, steps, batch.
        batches: what the loss draws from, the same from the beginning each time.
        loss: what a step descends.
        profile: handed on to the outcome.
        progress: told of every rate that is done.
        masks: entries (bool) that may change, by tensor; all where a tensor has none.

    Raises:
        ModelError: every learning rate breaks the model at its first step.
    """
    names = trainable(model, method.towers)
    judge = Judge(model, inputs, method, names)
    trainer = _Trainer(model, judge, names, budget, loss, masks or {})
    attempts: list[Attempt] = []
    trials: list[StepTrial] = []
    for done, rate in enumerate(sorted(budget.learning_rates), start=1):
        attempt, path = trainer.run(rate, batches())
        attempts += [attempt] if attempt else []
        trials += path
        progress("learning rates", done, len(budget.learning_rates))
    return settle(model, inputs, judge, attempts, profile, trials)


@dataclass(frozen=True, eq=False)
class _Trainer(Generic[Drawn]):
    model: Editable
    judge: Judge
    names: Sequence[str]
    budget: Budget
    loss: Callable[[Drawn], Tensor]
    masks: Mapping[str, Tensor]

    def run(self, rate: float, batches: Drawn) -> tuple[Attempt | None, list[StepTrial]]:
        """One learning rate: the attempt, None if the first step breaks the model, and every trial.

        A run that does not reach the target in time, or breaks, counts as it stood where it was closest.
        """
        weights, trials = self.model.parameters, []
        closest: tuple[int, Forgetting, dict[str, Tensor]] | None = None
        with restored(weights, self.names) as originals, self._optimizer(rate) as optimizer:
            for step in range(1, self.budget.steps + 1):
                self._step(optimizer, batches, originals)
                seen = self.judge.forgetting()
                if seen is None:
                    break
                trials.append(self.judge.trial(rate * step, seen))
                if closest is None or (seen.worst, seen.rate) < (closest[1].worst, closest[1].rate):
                    closest = step, seen, {name: weights[name].detach().clone() for name in self.names}
                if self.judge.reached(seen):
                    break
            if closest is None:
                return None, trials
            step, seen, kept = closest
            assign(weights, kept)
            retained = self.judge.retained_rate()
        trials[step - 1] = replace(trials[step - 1], retained_rate=retained)
        reached = self.judge.reached(seen)
        return Attempt(rate * step, kept, seen, reached, retained, tuple(trials[:step])), trials

    @contextmanager
    def _optimizer(self, rate: float) -> Iterator[torch.optim.Optimizer]:
        """AdamW on the tensors to train; no gradient is left behind."""
        parameters = [self.model.parameters[name] for name in self.names]
        groups = [
            # As in open_clip's own training: gains and biases do not decay.
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.budget.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
        with requiring_grad(self.model.net, self.names):
            try:
                yield optimizer
            finally:
                optimizer.zero_grad()

    def _step(
        self, optimizer: torch.optim.Optimizer, batches: Drawn, originals: Mapping[str, Tensor]
    ) -> None:
        optimizer.zero_grad()
        self.loss(batches).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # AdamW works entry by entry, so this is the same as to mask its gradient, and undoes the decay too.
        for name, mask in self.masks.items():
            weight = self.model.parameters[name]
            weight.data.copy_(torch.where(mask, weight.data, originals[name]))
