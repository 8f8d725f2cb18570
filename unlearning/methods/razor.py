"""RAZOR: several layers chosen by one score, one combined gradient, layers added until it suffices.

Ranjan, Grover, Lin, Polyzou, arXiv 2603.14819 (CVPR 2026 findings).  With g_f, g_r the gradients of the
forget and the retain loss of a layer w,

    score      ||g_f|| / ||w|| * (1 - cos(g_f, g_r))^alpha,  the layers above a threshold are edited
    update     w <- w + eta * (ratio * g_f - g_r - drift * g_m)
    expansion  while the target is missed, at most 6 times: score again at the present weights, add
               the best new layer, update again

L_m is the drift of image-text similarities of retain items from those of the original model; it has
no gradient at the original weights, so it acts from the first expansion on.  eta comes from a
search for the largest stable step on a small validation set.

Published without numbers, so ours: alpha, ratio (their lambda_f times rho), drift (their lambda_m) and the
threshold, a share of the highest score; L_m as the mean squared difference of the cosines within a
retain batch; a step is stable while the retained rate on the search split stays above `stable` of the
original; eta is relative to each layer's ||w|| / ||update||; an expansion updates all chosen layers, and
the last one must reach the target whatever it costs, so that methods compare at equal forgetting; each
tower is edited by itself, as SLUG has a front for each, and the one that keeps most is taken.
Attention heads are not scored apart, as theirs are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import ModelError
from contracts.values import LayerScore, Method, StepTrial
from unlearning.attempts import Attempt, Judge, best_alone, check_profile, restored, settle
from unlearning.families.clip import ClipModel
from unlearning.forgetting import Forgetting
from unlearning.gradients import Gradients
from unlearning.inplace import apply, edited
from unlearning.layer_scores import score_layers
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.search import smallest_reaching
from unlearning.similarity_drift import Drift
from unlearning.stepper import FIRST_RELATIVE_STEP


@dataclass(frozen=True)
class Options:
    """Hyper-parameters; see above for which are published.

    alpha: weight of the disagreement of the two gradients in the score, 0..1.
    threshold: a layer is edited from the start if it scores at least this share of its tower's highest.
    ratio: weight of the forget gradient.
    drift: weight of the gradient of the similarity drift.
    stable: share of the original retained rate that a step has to leave.
    expansions: at most so many layers are added.
    """

    alpha: float = 0.5
    threshold: float = 0.5
    ratio: float = 1.0
    drift: float = 1.0
    stable: float = 0.95
    expansions: int = 6

    def __post_init__(self) -> None:
        check_numbers(self, "alpha", "threshold", "stable", at_least=0, at_most=1)
        check_numbers(self, "ratio", "drift", "expansions", at_least=0)


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """Scores of all layers, and for each tower the combined gradient of those that are edited first.

    The score is of the request as a whole: every concept has the same.  `alignment` is the signed
    cosine and `on_front` says that a layer is edited from the start; directions stand under the
    name of their tower.

    Raises:
        ModelError: a gradient is not finite.
    """
    options = from_plain(Options, method.options)
    layers = [c.name for c in model.candidates() if c.tower in method.towers]
    forget, retain = _gradients(model, inputs, method, layers, progress)
    scores = _scores(model, forget, retain)
    highest = {
        tower: max(value(s, options.alpha) for s in scores if s.tower == tower) for tower in method.towers
    }
    chosen = tuple(
        replace(s, on_front=value(s, options.alpha) >= options.threshold * highest[s.tower]) for s in scores
    )
    directions: dict[str, dict[str, Tensor]] = {
        tower: {
            s.layer: options.ratio * forget[s.layer] - retain[s.layer]
            for s in chosen
            if s.on_front and s.tower == tower
        }
        for tower in method.towers
    }
    return Profile({inputs.class_ids[target]: chosen for target in inputs.targets}, directions)


def value(score: LayerScore, alpha: float) -> float:
    """RAZOR's score of a layer, from its importance and its signed alignment."""
    return score.importance * float(max(1.0 - score.alignment, 0.0) ** alpha)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """In each tower search a step, add a layer, search again; edit the better one in place.

    The step size of a trial and of an edit is relative, ||update|| / ||w||, summed over the rounds.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a gradient is not finite, or every step breaks the model.
    """
    check_profile(profile, inputs)
    drift = Drift(model, inputs, method)
    attempts: list[Attempt] = []
    trials: list[StepTrial] = []
    for first in profile.directions.values():
        judge = Judge(model, inputs, method, tuple(first))
        found, tried = _rounds(model, inputs, method, judge, first, drift, progress)
        attempts = best_alone(*attempts, *found)
        trials += tried
    return settle(model, inputs, judge, attempts, profile, trials)


def _rounds(
    model: ClipModel,
    inputs: UnlearnInputs,
    method: Method,
    judge: Judge,
    directions: Mapping[str, Tensor],
    drift: Drift,
    progress: Progress,
) -> tuple[list[Attempt], list[StepTrial]]:
    """The best state after a round in one tower, if there is any, and all trials; the model ends as it began.

    A round in which every step breaks the model is the end, and leaves no state.
    """
    options = from_plain(Options, method.options)
    floor = options.stable * (judge.original.retained_rate or 0.0)
    names = [c.name for c in model.candidates() if c.tower == judge.original.tower]
    best: list[Attempt] = []  # one at most: an attempt may be a whole tower
    path: tuple[StepTrial, ...] = ()
    trials: list[StepTrial] = []
    taken, by_layer = 0.0, dict.fromkeys(directions, 0.0)
    with restored(model.parameters, names):
        for done in range(options.expansions + 1):
            judge.focus(tuple(directions))
            last = done == options.expansions
            updates = _relative(model, directions)
            found = _search(model, judge, updates, 0.0 if last else floor, method.search_steps)
            if found is None:
                break  # one more layer would not mend what these do
            step, tried = found
            apply(model.parameters, {layer: step * update for layer, update in updates.items()})
            trials += [judge.trial(taken + size, seen, kept) for size, seen, kept in tried]
            taken += step
            by_layer = {layer: by_layer.get(layer, 0.0) + step for layer in directions}
            measured = judge.both()
            progress("rounds", done + 1, options.expansions + 1)
            if measured is None:
                raise ModelError("the model does not give finite features after a step that did")
            seen, retained = measured
            path, reached = (*path, judge.trial(taken, seen, retained)), judge.reached(seen)
            weights = {layer: model.parameters[layer].detach().clone() for layer in directions}
            best = best_alone(*best, Attempt(taken, weights, seen, reached, retained, path, by_layer))
            del weights  # they would be kept through the next round
            if reached or last:
                break
            directions = _expanded(model, inputs, method, names, directions, drift, progress)
    return best, trials


def _gradients(
    model: ClipModel, inputs: UnlearnInputs, method: Method, layers: Sequence[str], progress: Progress
) -> tuple[Gradients, Gradients]:
    """Of the forget loss over all concepts and of the retain loss, at the present weights."""
    forget = inputs.forget_gradient(model, inputs.targets, layers, method.micro_batch)
    return forget, inputs.retain_gradient(model, layers, method, progress)


def _scores(model: ClipModel, forget: Gradients, retain: Gradients) -> tuple[LayerScore, ...]:
    candidates = [c for c in model.candidates() if c.name in forget]
    return score_layers(candidates, model.parameters, forget, retain, "signed")


def _expanded(
    model: ClipModel,
    inputs: UnlearnInputs,
    method: Method,
    names: Sequence[str],
    edited_so_far: Mapping[str, Tensor],
    drift: Drift,
    progress: Progress,
) -> dict[str, Tensor]:
    """The combined gradient at the present weights, of the layers so far and the best new one of `names`."""
    options = from_plain(Options, method.options)
    forget, retain = _gradients(model, inputs, method, names, progress)
    new = [score for score in _scores(model, forget, retain) if score.layer not in edited_so_far]
    best = max(new, key=lambda score: value(score, options.alpha), default=None)
    layers = [*edited_so_far, *([best.layer] if best else [])]
    moved = drift.gradient(layers)
    return {
        layer: options.ratio * forget[layer] - retain[layer] - options.drift * moved[layer]
        for layer in layers
    }


def _relative(model: ClipModel, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Directions as long as the weights they belong to."""
    scaled = {}
    for layer, direction in directions.items():
        length = torch.linalg.vector_norm(direction)
        norm = torch.linalg.vector_norm(model.parameters[layer].detach())
        scaled[layer] = direction * (norm / length if length > 0 else 0.0)
    return scaled


def _search(
    model: ClipModel, judge: Judge, updates: Mapping[str, Tensor], floor: float, steps: int
) -> tuple[float, list[tuple[float, Forgetting, float]]] | None:
    """The smallest step that reaches the target, if it is stable, else the largest stable one.

    Args:
        model: at the weights to step from; it ends there.
        judge: measures.
        updates: what step 1 adds.
        floor: a step is stable if the retained rate is at least this.
        steps: budget of measurements.

    Returns:
        The step, 0 where no tried one is stable; and (step, forgetting, retained rate) of all tried.  None if
        each of them breaks the model.
    """

    def observe(step: float) -> tuple[Forgetting, float] | None:
        with edited(model.parameters, {layer: step * update for layer, update in updates.items()}):
            return judge.both()

    def too_far(seen: tuple[Forgetting, float]) -> bool:
        return judge.reached(seen[0]) or seen[1] < floor

    found = smallest_reaching(observe, too_far, first=FIRST_RELATIVE_STEP, steps=steps)
    if not found.tried:
        return None
    tried = [(step, *seen) for step, seen in found.tried]
    stable = [(step, seen) for step, seen, kept in tried if kept >= floor]
    enough = [step for step, seen in stable if judge.reached(seen)]
    if enough:
        return min(enough), tried
    return max((step for step, _ in stable), default=0.0), tried
