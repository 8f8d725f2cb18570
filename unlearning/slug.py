"""SLUG: one gradient, one layer, one searched step (Cai, Tan, Asif: arXiv 2407.11867, ICML 2025).

    profile   g_f = grad of the forget loss, g_r = grad of the retain loss, both at the original
              weights; importance, |alignment| and the Pareto front of each tower
    search    for every front layer l the smallest tried step > 0 at which  w_l + step * g_f,l
              brings FA@forget_at on the search split down to the target
    choose    of the layers that got there, the one that keeps most TA@1 on the search split

**Sign.** Forgetting *ascends* the forget loss (mean of 1 - cos), so the step is added with a plus.
The paper's equation 8 prints a minus, which read literally would strengthen the concept.

Several concepts (section C.2): gradients and searches per concept, all at the original weights;
the updates are added, w_l + sum_i step_i * g_i,l, and one common factor on all steps is searched, so
that the smallest joint step is used at which every concept meets the target.

Profile and search are apart, so that two tasks can run them; `unlearn` does both.
"""

from contracts.errors import InputError
from contracts.values import LayerScore, Method
from unlearning.families.clip import ClipModel
from unlearning.gradients import forget_gradient, retain_gradient
from unlearning.inplace import apply
from unlearning.profile import score_layers
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs, check_method
from unlearning.search_split import SearchSplit
from unlearning.stepping import Combination, Stepper, best_layer


def unlearn(
    model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress | None = None
) -> Outcome:
    """Profile, search, and edit the model in place; after an exception it holds its old weights, bit for bit.

    Raises:
        InputError: the method's options do not fit the request.
        ModelError: a gradient is not finite, no layer can be stepped, or every step breaks the model.
    """
    return search_and_edit(model, inputs, method, profile_layers(model, inputs, method, progress), progress)


def profile_layers(
    model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress | None = None
) -> Profile:
    """Layer scores of every concept, and the forget gradients of the layers on a front.

    Raises:
        InputError: the method's options do not fit the request.
        ModelError: a gradient is not finite.
    """
    check_method(method, len(inputs.class_ids))
    tell = progress or _silent
    candidates = [c for c in model.candidates() if c.tower in method.towers]
    layers = [c.name for c in candidates]
    retain = retain_gradient(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=method.retain_batch,
        micro_batch=method.micro_batch,
        seed=inputs.seed,
        progress=lambda done, total: tell("retain gradient", done, total),
    )
    scores: dict[str, tuple[LayerScore, ...]] = {}
    gradients = {}
    for done, target in enumerate(inputs.targets, start=1):
        rows = (inputs.forget_labels == target).nonzero()[0]
        captions = [inputs.forget_captions[i] for i in rows]
        forget = forget_gradient(model, inputs.forget_images[rows], captions, layers, method.micro_batch)
        concept = inputs.class_ids[target]
        scores[concept] = score_layers(candidates, model.parameters, forget, retain)
        gradients[concept] = {s.layer: forget[s.layer] for s in scores[concept] if s.on_front}
        tell("forget gradients", done, len(inputs.targets))
    return Profile(scores, gradients)


def search_and_edit(
    model: ClipModel,
    inputs: UnlearnInputs,
    method: Method,
    profile: Profile,
    progress: Progress | None = None,
) -> Outcome:
    """Search every front layer of every concept, choose, combine, and edit the model in place.

    The model must hold the weights that the profile was taken at.

    Raises:
        InputError: the method's options do not fit the request, or the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, or every step breaks the model.
    """
    check_method(method, len(inputs.class_ids))
    targets = {inputs.class_ids[target]: target for target in inputs.targets}
    if set(profile.gradients) != set(targets):
        raise InputError("the profile was taken for other concepts than the request names")
    directions = {concept: profile.gradients[concept] for concept in targets}
    tell = progress or _silent
    stepper = Stepper(SearchSplit(model, inputs, method), directions, targets)
    found = stepper.search_layers(tell)
    trials = [trial for steps in found.values() for step in steps for trial in step.trials]
    best = [best_layer(steps) for steps in found.values()]
    chosen, reached = Combination(tuple(best)), best[0].reached
    if len(best) > 1:
        chosen, reached, joint = stepper.search_factor(best, tell)
        trials += joint
    curve, edits = stepper.curve(chosen, tell), stepper.edits(chosen)
    apply(model.parameters, chosen.updates(directions))
    return Outcome(edits, tuple(trials), curve, reached, profile.scores)


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a caller that did not ask for any."""
