"""One searched step: the best layer of every concept, chosen along a profile's directions, and the edit.

How steps are measured is `unlearning.stepper`'s business; edits of many tensors at once have
`unlearning.attempts`.
"""

from collections.abc import Mapping

from torch import Tensor

from contracts.errors import InputError
from contracts.values import Method
from unlearning.attempts import check_profile
from unlearning.families import Editable, Request
from unlearning.inplace import apply
from unlearning.layer_steps import Combination, best_layer
from unlearning.request import JOINT, Outcome, Profile, Progress
from unlearning.stepper import FirstStep, Stepper, tenth_of_weight


def step_and_edit(
    model: Editable,
    inputs: Request,
    method: Method,
    profile: Profile,
    progress: Progress,
    *,
    least: float = 0.0,
    most: float | None = None,
    first: FirstStep = tenth_of_weight,
    moved_with: Mapping[str, str] | None = None,
) -> Outcome:
    """Search every direction of every concept, choose a layer each, combine, and edit the model in place.

    The model must hold the weights that the profile was taken at.  Directions under `JOINT` alone are
    stepped for all concepts at once: one layer, one step.

    Args:
        model: whose tensors are edited.
        inputs: of the request.
        method: names target and budget.
        profile: with the directions.
        progress: told how far it is.
        least: smallest step, for a method whose directions have a length that means something.
        most: largest step in a layer; None has no limit.
        first: where the search in a layer begins without a `least`.
        moved_with: by the name of a bias, the weight of the layer that it moves with; None where every tensor
            of the profile is a layer of its own.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, or every step breaks the model.
    """
    concepts = {inputs.class_ids[target]: [target] for target in inputs.targets}
    targets = {JOINT: list(inputs.targets)} if JOINT in profile.directions else concepts
    check_profile(profile, inputs)
    if set(profile.directions) != set(targets):
        raise InputError("the profile has directions of other concepts than the request names")
    directions = {concept: _by_layer(profile.directions[concept], moved_with or {}) for concept in targets}
    split = inputs.search_split(model, method, {layer for own in directions.values() for layer in own})
    stepper = Stepper(split, directions, targets, list(concepts), least, most, first)
    found = stepper.search_layers(progress)
    trials = [trial for steps in found.values() for step in steps for trial in step.trials]
    best = [best_layer(steps) for steps in found.values()]
    chosen, reached = Combination(tuple(best)), best[0].reached
    if len(best) > 1:
        chosen, reached, joint = stepper.search_factor(best, progress)
        trials += joint
    curve, edits = stepper.curve(chosen, progress), stepper.edits(chosen)
    apply(model.parameters, chosen.updates(directions))
    return Outcome(edits, tuple(trials), curve, reached, profile.scores)


def _by_layer(updates: Mapping[str, Tensor], moved_with: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, update in updates.items():
        found.setdefault(moved_with.get(name, name), {})[name] = update
    return found
