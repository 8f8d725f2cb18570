"""Measures steps along given directions: one per concept and layer, then one factor on all together.

A direction says what a unit step adds to a layer, w + step * direction: to its weight, and to its bias where
a method moves both.  For SLUG it is the forget gradient itself.  Where directions come from is a method's
business; `unlearning.stepping` chooses and edits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from torch import Tensor

from contracts.errors import ModelError
from contracts.values import Edit, StepTrial, Tower
from unlearning.curve import measured_curve
from unlearning.families import Split, View, earliest
from unlearning.forgetting import Forgetting
from unlearning.inplace import edited
from unlearning.layer_steps import (
    Combination,
    Directions,
    LayerStep,
    best_layer,
    norm,
    relative_change,
    scaled,
)
from unlearning.request import JOINT, Progress
from unlearning.step_search import StepSearches, smallest_or_closest

FIRST_RELATIVE_STEP = 0.1

FirstStep = Callable[[float, float], float]
"""The first step tried in a layer, from the norms of its weight and of its direction."""


def tenth_of_weight(weight_norm: float, direction_norm: float) -> float:
    """The step that changes a layer by a tenth of its norm, as in SLUG's released code."""
    return FIRST_RELATIVE_STEP * weight_norm / direction_norm


class Stepper:
    """Searches steps on one search split; every call leaves the model's weights as they were, bit for bit.

    Args:
        split: the search split, built at the present weights.
        directions: what to step along.
        targets: class indices by concept id; several where `JOINT` stands for all concepts of a request.
        concepts: ids of all concepts, what `JOINT` stands for in the record of an edit.
        least: smallest step, and smallest common factor on steps; tried first, and taken if it will do.
        most: largest step in a layer; None has no limit.
        first: where the search in a layer begins if there is no `least`.
    """

    def __init__(
        self,
        split: Split,
        directions: Directions,
        targets: Mapping[str, Sequence[int]],
        concepts: Sequence[str],
        least: float = 0.0,
        most: float | None = None,
        first: FirstStep = tenth_of_weight,
    ) -> None:
        self._split, self._directions, self._targets = split, directions, targets
        self._least, self._most, self._first = least, most, first
        self._concepts = tuple(concepts)
        self._all = [target for own in targets.values() for target in own]
        self._weights, self._method = split.model.parameters, split.method
        self._searches = StepSearches(split)

    def search_layers(self, progress: Progress) -> dict[str, list[LayerStep]]:
        """The best step of every layer that has a direction, by concept.

        The searches run stage by stage and not concept by concept: every edit is undone exactly, so
        their order is free, and one view (one stage's activations) at a time serves all concepts.
        A layer where every tried step breaks the model is left out.  What a layer keeps is no longer
        counted once another one is sure to be chosen before it: it counts as 0, its trial has no rate.

        Raises:
            ModelError: the model gives features that are not finite as it is.
        """
        jobs = [(concept, layer) for concept, own in self._directions.items() for layer in own]
        found: dict[tuple[str, str], LayerStep | None] = {}
        best: dict[str, LayerStep] = {}
        view = None
        for (tower, stage), group in groupby(sorted(jobs, key=self._place), key=self._place):
            view = self._split.view({tower: stage}, before=view)
            for concept, layer in group:
                step = found[concept, layer] = self._search_layer(view, concept, layer, best.get(concept))
                if step is not None and step.reached:
                    best[concept] = best_layer([step, *filter(None, [best.get(concept)])])
                progress("step search", len(found), len(jobs))
        steps: dict[str, list[LayerStep]] = {concept: [] for concept in self._directions}
        for job in jobs:
            step = found[job]
            if step is not None:
                steps[job[0]].append(step)
        return steps

    def search_factor(
        self, steps: Sequence[LayerStep], progress: Progress
    ) -> tuple[Combination, bool, list[StepTrial]]:
        """The smallest common factor on several concepts' steps at which every concept meets the target.

        A joint trial counts by its *worst* concept; the forget rate it records is over all items.

        Returns:
            The combination, whether it met the target (if not, it is the closest), and the trials.

        Raises:
            ModelError: every factor tried breaks the model, or it is broken as it is.
        """
        whole = Combination(tuple(steps))
        view, targets = self._view(whole), self._all
        budget, tried = self._method.search_steps, 0

        def observe(factor: float) -> Forgetting | None:
            nonlocal tried
            tried += 1
            progress("joint step", tried, budget)
            return self._observe(view, whole.updates(self._directions, factor), targets)

        search = self._searches.search(observe, targets, 1.0, self._least)
        if not search.tried:
            raise ModelError("no joint step leaves the model with finite features")
        factor, _ = smallest_or_closest(search)
        return (
            replace(whole, factor=factor),
            search.smallest is not None,
            [self._trial(whole, f, seen) for f, seen in search.tried],
        )

    def curve(self, chosen: Combination, progress: Progress) -> tuple[StepTrial, ...]:
        """Forget rate, forget cosine and retained rate at `CURVE_MULTIPLES` of the chosen step.

        A multiple at which the features are no longer finite is left out.  The step itself is not measured
        again if its search did so in full.
        """
        whole = self._measured_in_full(chosen)
        seen = measured_curve(
            self._split,
            self._view(chosen),
            self._all,
            lambda multiple: chosen.updates(self._directions, multiple),
            progress,
            known=[1.0] * len(whole),
        )
        points = (
            replace(self._trial(chosen, multiple, known), retained_rate=retained)
            for multiple, known, retained in seen
        )
        return tuple(sorted((*whole, *points), key=lambda point: point.step_size))

    def edits(self, chosen: Combination) -> tuple[Edit, ...]:
        """One record per changed tensor; where concepts share it, `step_size` is the sum of their steps."""
        records = []
        for name, update in chosen.updates(self._directions).items():
            own = [step for step in chosen.steps if name in self._directions[step.concept][step.layer]]
            layer, size = own[0].layer, sum(step.step_size for step in own) * chosen.factor
            concepts = self._concepts if own[0].concept == JOINT else tuple(s.concept for s in own)
            change = relative_change(update, self._weights[name], self._weights[layer])
            records.append(Edit(name, self._tower(layer), size, concepts, change))
        return tuple(records)

    def _search_layer(
        self, view: View, concept: str, layer: str, rival: LayerStep | None
    ) -> LayerStep | None:
        direction, targets = self._directions[concept][layer], self._targets[concept]
        weight_norm, direction_norm = norm(self._weights[layer]), norm(direction[layer])

        def observe(step: float) -> Forgetting | None:
            if self._most is not None and step > self._most:
                return None  # what is not allowed bounds the search like what breaks the model
            return self._observe(view, scaled(direction, step), targets)

        first = self._first(weight_norm, direction_norm)
        search = self._searches.search(observe, targets, first, self._least)
        if not search.tried:
            return None
        reached = search.smallest is not None
        best, at_best = smallest_or_closest(search)
        change = best * direction_norm / weight_norm
        to_beat = rival if reached else None

        def may_win(rate: float) -> bool:
            return to_beat is None or (-rate, change) < to_beat.preference

        with edited(self._weights, scaled(direction, best)):
            retained = view.retained_rate_if(may_win)
        trials = tuple(
            StepTrial(
                concept,
                layer,
                self._tower(layer),
                step,
                seen.rate,
                seen.score,
                retained if step == best else None,
            )
            for step, seen in search.tried
        )
        return LayerStep(
            concept,
            layer,
            best,
            reached,
            at_best.worst,
            retained or 0.0,
            change,
            trials,
        )

    def _measured_in_full(self, chosen: Combination) -> tuple[StepTrial, ...]:
        """The trial of one concept's step, if all that the curve says of it is known exactly."""
        if len(chosen.steps) > 1:
            return ()
        (step,) = chosen.steps
        # A search led by margins may overstate what is still known, but not nothing.
        return tuple(
            trial
            for trial in step.trials
            if trial.step_size == step.step_size
            and trial.forget_rate == 0.0
            and trial.retained_rate is not None
        )

    def _observe(
        self, view: View, updates: Mapping[str, Tensor], targets: Sequence[int]
    ) -> Forgetting | None:
        with edited(self._weights, updates):
            return view.forgetting(targets, exact=self._method.step_rule == "bisection")

    def _place(self, job: tuple[str, str]) -> tuple[Tower, int]:
        return self._split.place(job[1])

    def _tower(self, layer: str) -> Tower:
        return self._split.place(layer)[0]

    def _view(self, combination: Combination) -> View:
        """A view that stands before the first edited stage of each edited tower."""
        return self._split.view(earliest(self._split, (step.layer for step in combination.steps)))

    def _trial(self, combination: Combination, multiple: float, seen: Forgetting) -> StepTrial:
        """A point of a combination; of several concepts, `step_size` is the common factor on their steps."""
        steps = combination.steps
        layers = {step.layer for step in steps}
        size = multiple * combination.factor * (steps[0].step_size if len(steps) == 1 else 1.0)
        return StepTrial(
            concept=steps[0].concept if len(steps) == 1 else JOINT,
            layer=steps[0].layer if len(layers) == 1 else JOINT,
            tower=self._tower(steps[0].layer),
            step_size=size,
            forget_rate=seen.rate,
            forget_score=seen.score,
        )
