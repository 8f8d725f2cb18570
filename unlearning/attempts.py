"""Edits of many tensors at once: how an attempt is measured, how the best is chosen, how it is written down.

Methods that search one tensor at a time have `stepping`; training, dampening and projection change
whole towers.  One rule chooses for all of them: of the attempts that reach the target on the search
split the one that keeps most there, else the one that came closest.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from contracts.errors import InputError, ModelError
from contracts.values import Edit, Method, StepTrial, Tower
from unlearning.families import Editable, Request, View, earliest
from unlearning.forgetting import Forgetting
from unlearning.layer_steps import relative_change
from unlearning.request import JOINT, Outcome, Profile, Progress

Setting = TypeVar("Setting")


def trainable(model: Editable, towers: Sequence[Tower]) -> tuple[str, ...]:
    """Every candidate weight of the towers, and the bias beside it.

    Full fine-tuning, as published, also moves embeddings and the temperature.  Here they are left
    alone for every method: SLUG's rule excludes them, and the temperature cannot change a ranking.
    """
    weights = {c.name for c in model.candidates() if c.tower in towers}
    return tuple(name for name in model.parameters if _weight_of(name) in weights)


def _weight_of(name: str) -> str:
    """`attn.in_proj_bias` to `attn.in_proj_weight`; names of weights as they are."""
    return f"{name.removesuffix('bias')}weight" if name.endswith("bias") else name


@contextmanager
def restored(parameters: Mapping[str, nn.Parameter], names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Do to the named tensors what you like inside; bit-equal originals after, also after an exception.

    Yields:
        Copies of the originals.
    """
    originals = {name: parameters[name].detach().clone() for name in names}
    try:
        yield originals
    finally:
        assign(parameters, originals)


@torch.no_grad()
def assign(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """weight = given weight, for every named tensor."""
    for name, weight in weights.items():
        parameters[name].copy_(weight)


@dataclass(frozen=True, eq=False)
class Attempt:
    """One finished try.

    Attributes:
        step_size: what the method searched over; its docstring says what that is.
        weights: the tensors it changes, by name.
        seen: how well the targets are known with them.
        reached: whether that meets the target.
        retained_rate: TA@1 on the search split with them.
        path: the trials that its curve shows, in order.
        own_steps: by name, step sizes of tensors where they are not all `step_size`.
    """

    step_size: float
    weights: Mapping[str, Tensor]
    seen: Forgetting
    reached: bool
    retained_rate: float
    path: tuple[StepTrial, ...]
    own_steps: Mapping[str, float] = field(default_factory=dict)

    @property
    def rank(self) -> tuple[float, ...]:
        """Smaller is better."""
        if self.reached:
            return (0.0, -self.retained_rate)
        return (1.0, self.seen.worst, self.seen.rate, -self.retained_rate)


class Judge:
    """Measures the weights of the moment on the search split.

    Args:
        model: at its original weights.
        inputs: of the request.
        method: names target and micro-batch.
        layers: what may change while this judge is in use.
    """

    def __init__(self, model: Editable, inputs: Request, method: Method, layers: Sequence[str]) -> None:
        self._inputs, self._method = inputs, method
        self._split = inputs.search_split(model, method, layers)
        self._tower = self.tower_of(layers[0])
        original = self._split.view({})
        seen = original.both(inputs.targets)
        if seen is None:
            raise ModelError("the model as it is does not give finite features")
        self.original = self.trial(0.0, *seen)
        self._view = self._view_of(layers)

    def tower_of(self, layer: str) -> Tower:
        """The tower that a tensor belongs to."""
        return self._split.place(layer)[0]

    def focus(self, layers: Sequence[str]) -> None:
        """From now on only these change: activations entering the first of them are computed once."""
        self._view = self._view_of(layers)

    def forgetting(self) -> Forgetting | None:
        """How well the targets are known now; None if a feature is not finite."""
        return self._view.forgetting(self._inputs.targets)

    def retained_rate(self) -> float:
        """TA@1 over the classes to keep, now."""
        return self._view.retained_rate_if(lambda rate: True) or 0.0

    def both(self) -> tuple[Forgetting, float] | None:
        """`forgetting` and `retained_rate` in one pass."""
        return self._view.both(self._inputs.targets)

    def reached(self, seen: Forgetting) -> bool:
        """Whether the best-known target meets the request's forget target."""
        return seen.worst <= self._method.forget_target

    def trial(self, step_size: float, seen: Forgetting, retained_rate: float | None = None) -> StepTrial:
        """A record of what was seen; it concerns several layers, so its layer is `JOINT`."""
        targets = self._inputs.targets
        concept = self._inputs.class_ids[targets[0]] if len(targets) == 1 else JOINT
        return StepTrial(concept, JOINT, self._tower, step_size, seen.rate, seen.score, retained_rate)

    def _view_of(self, layers: Sequence[str]) -> View:
        return self._split.view(earliest(self._split, layers))


def try_each(
    model: Editable,
    judge: Judge,
    layers: Iterable[str],
    settings: Sequence[Setting],
    edit: Callable[[Mapping[str, Tensor], Setting], tuple[float, Mapping[str, Tensor]]],
    progress: Progress,
) -> list[Attempt]:
    """The best attempt of a closed form, each setting from the original weights; the model ends as it began.

    Weights are kept of the best one alone, by the rule of `best_attempt`: an attempt may be a whole model.

    Args:
        model: at its original weights.
        judge: of these layers.
        layers: the tensors that change.
        settings: what to try, in order.
        edit: a step size to be recorded and the edited tensors, from the original ones and a setting.
        progress: told of every setting.

    Returns:
        The best attempt, with the trials of all settings; nothing if each of them breaks the model.
    """
    trials: list[StepTrial] = []

    def attempt(size: float, weights: Mapping[str, Tensor]) -> Attempt | None:
        assign(model.parameters, weights)
        measured = judge.both()
        if measured is None:
            return None
        seen, retained = measured
        trials.append(judge.trial(size, seen, retained))
        return Attempt(size, weights, seen, judge.reached(seen), retained, ())

    best: list[Attempt] = []
    with restored(model.parameters, layers) as originals:
        for done, setting in enumerate(settings, start=1):
            # No name for the attempt: it would keep the weights until the next one is there.
            best = best_alone(*best, attempt(*edit(originals, setting)))
            progress("settings", done, len(settings))
    return [replace(one, path=tuple(trials)) for one in best]


def check_profile(profile: Profile, inputs: Request) -> None:
    """Refuse a profile of another request.

    Raises:
        InputError: its concepts are not the targets.
    """
    if set(profile.scores) != {inputs.class_ids[target] for target in inputs.targets}:
        raise InputError("the profile was taken for other concepts than the request names")


def unprofiled(inputs: Request) -> Profile:
    """The profile of a method that scores no layers."""
    return Profile({inputs.class_ids[target]: () for target in inputs.targets}, {})


def best_alone(*attempts: Attempt | None) -> list[Attempt]:
    """The best of those there are, by the rule of `best_attempt`; none of none."""
    return sorted(filter(None, attempts), key=lambda one: one.rank)[:1]


def best_attempt(attempts: Sequence[Attempt]) -> Attempt:
    """The attempt that keeps most among those that reached the target, else the closest; the first of equals.

    Raises:
        ModelError: there is none.
    """
    if not attempts:
        raise ModelError("every attempt breaks the model: no finite features are left")
    return min(attempts, key=lambda attempt: attempt.rank)


def settle(
    model: Editable,
    inputs: Request,
    judge: Judge,
    attempts: Sequence[Attempt],
    profile: Profile,
    trials: Sequence[StepTrial] | None = None,
) -> Outcome:
    """Put the best attempt into the model and say so; called last, at the original weights.

    Every edit names all concepts of the request: what one of them changed cannot be told apart.

    Args:
        model: at its original weights.
        inputs: of the request.
        judge: that measured the attempts.
        attempts: to choose from.
        profile: handed on to the outcome.
        trials: everything that was evaluated, where that is more than the best attempt's path.

    Raises:
        ModelError: there is no attempt.
    """
    best = best_attempt(attempts)
    concepts = tuple(inputs.class_ids[target] for target in inputs.targets)
    edits = []
    for layer, weight in best.weights.items():
        before = model.parameters[layer].detach()
        if not torch.equal(before, weight):
            change = relative_change(weight - before, before, model.parameters[_weight_of(layer)])
            size = best.own_steps.get(layer, best.step_size)
            edits.append(Edit(layer, judge.tower_of(layer), size, concepts, change))
    assign(model.parameters, best.weights)
    evaluated = best.path if trials is None else tuple(trials)
    start = replace(judge.original, tower=best.path[-1].tower)
    return Outcome(tuple(edits), evaluated, (start, *best.path), best.reached, profile.scores)
