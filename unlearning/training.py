"""Unlearning by training, tuned fairly: AdamW steps with a stop check after each, several learning rates.

The SLUG paper compares with baselines that were looked at once an epoch at one of two learning
rates, so that they had overshot before anybody looked.  Here every optimiser step is followed by
the same measurement that drives our own searches, the run ends at the first step that reaches the
target, and the learning rate is the one of a grid that keeps most on the search split.

The optimiser is that of the paper's comparison (AdamW, weight decay 0.1, batch 32), with two
differences: the model stays in eval() mode, so that BatchNorm statistics never move, and the rate
is constant, because a cosine schedule is tied to a length that a stopped run does not have.

Where the forget loss is bounded (relabelling, for instance) there is nothing to overshoot: such a run may
take all its steps, the rate falling to zero, and gains what a first glimpse of the target does not give,
that single items do not differ.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from contracts.values import Method, StepTrial
from unlearning.attempts import Attempt, Judge, assign, best_alone, restored, settle, trainable
from unlearning.families import Editable, Request
from unlearning.forgetting import Forgetting
from unlearning.inplace import requiring_grad
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile, Progress


@dataclass(frozen=True)
class Budget:
    """How much training a method may do.

    learning_rates: the grid; every rate starts anew from the original weights.
    steps: optimiser steps for each rate.
    batch: pairs of each set in a step; a smaller set is taken whole.
    weight_decay: of AdamW, on matrices and kernels only.
    schedule: "stop" ends a run at the first step that reaches the target.  "full" takes all steps, the
        second half at a rate that falls to zero, and counts as it stands at the end.
    """

    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    steps: int = 50
    batch: int = 32
    weight_decay: float = 0.1
    schedule: Literal["stop", "full"] = "stop"

    def __post_init__(self) -> None:
        check_numbers(self, "learning_rates", above=0)
        check_numbers(self, "steps", at_least=1)
        check_numbers(self, "batch", at_least=2)
        check_numbers(self, "weight_decay", at_least=0)

    def factor(self, step: int) -> float:
        """Of the learning rate at a step, 1 to `steps`."""
        return min(1.0, 2 * (self.steps - step + 1) / self.steps) if self.schedule == "full" else 1.0

    def looks(self, step: int) -> bool:
        """Whether the target is looked at after a step: each, or of a full run each eighth and the last."""
        return self.schedule == "stop" or step % max(self.steps // 8, 1) == 0 or step == self.steps


Drawn = TypeVar("Drawn")
"""What a loss draws its batches from (`unlearning.training_batches`), made anew for each learning rate."""


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
    names: Sequence[str] | None = None,
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
        progress: told of every step.
        masks: entries (bool) that may change, by tensor; all where a tensor has none.
        names: the tensors to train; every `attempts.trainable` one of the method's towers if not given.

    Raises:
        ModelError: every learning rate breaks the model before the first look at it (`Budget.looks`).
    """
    names = trainable(model, method.towers) if names is None else names
    judge = Judge(model, inputs, method, names)
    trainer = _Trainer(model, judge, names, budget, loss, masks or {})
    best: list[Attempt] = []  # one at most: an attempt may be a whole model
    trials: list[StepTrial] = []
    total = budget.steps * len(budget.learning_rates)
    for run, rate in enumerate(sorted(budget.learning_rates)):
        tell = partial(_told, progress, budget.steps * run, total)
        attempt, path = trainer.run(rate, batches(), tell)
        best = best_alone(*best, attempt)
        del attempt  # it would keep its weights through the next run
        trials += path
        tell(budget.steps)
    return settle(model, inputs, judge, best, profile, trials)


def _told(progress: Progress, before: int, total: int, step: int) -> None:
    progress("training", before + step, total)


@dataclass(frozen=True, eq=False)
class _Trainer(Generic[Drawn]):
    model: Editable
    judge: Judge
    names: Sequence[str]
    budget: Budget
    loss: Callable[[Drawn], Tensor]
    masks: Mapping[str, Tensor]

    def run(
        self, rate: float, batches: Drawn, tell: Callable[[int], None]
    ) -> tuple[Attempt | None, list[StepTrial]]:
        """One learning rate: the attempt, None if the first look finds a broken model, and every trial.

        A run that does not reach the target in time, or breaks, counts as it stood where it was closest;
        a full run, as it stood last.
        """
        weights, trials, stops = self.model.parameters, [], self.budget.schedule == "stop"
        counts: tuple[int, int, Forgetting, dict[str, Tensor]] | None = None
        with restored(weights, self.names) as originals, self._optimizer(rate) as optimizer:
            for step in range(1, self.budget.steps + 1):
                for group in optimizer.param_groups:
                    group["lr"] = rate * self.budget.factor(step)
                self._step(optimizer, batches, originals)
                tell(step)
                if not self.budget.looks(step):
                    continue
                seen = self.judge.forgetting()
                if seen is None:
                    break
                trials.append(self.judge.trial(rate * step, seen))
                if not stops or counts is None or (seen.worst, seen.rate) < (counts[2].worst, counts[2].rate):
                    kept = {name: weights[name].detach().clone() for name in self.names}
                    counts = step, len(trials), seen, kept
                if stops and self.judge.reached(seen):
                    break
            if counts is None:
                return None, trials
            step, looked, seen, kept = counts
            assign(weights, kept)
            retained = self.judge.retained_rate()
        trials[looked - 1] = replace(trials[looked - 1], retained_rate=retained)
        reached = self.judge.reached(seen)
        return Attempt(rate * step, kept, seen, reached, retained, tuple(trials[:looked])), trials

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
