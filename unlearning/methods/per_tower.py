"""per-tower: one method for each tower, so that neither the name nor the look leads to the concept.

    text     by default `uce`: no text means the concept any more
    vision   by default `erase-linear`: no linear probe finds it in the image features

An edit of the text tower alone leaves the image features as they are: a fresh probe, or a search by
image, still finds everything.  An edit of the vision tower alone leaves the name where it was.  Each
part is profiled and searched on the base model as if the other tower stayed as it is, so each tower
forgets by itself, and putting the old one of the two back brings nothing back.  Then both changes are
made; they are in different tensors, so their order does not matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import LayerScore, Method, StepTrial, Tower
from unlearning.attempts import assign, restored, trainable
from unlearning.curve import measured_curve
from unlearning.families import earliest
from unlearning.families.clip import ClipModel
from unlearning.request import JOINT, Outcome, Profile, Progress, UnlearnInputs
from unlearning.retain_statistics import Wanted
from unlearning.search_split import SearchSplit

TOWERS: tuple[Tower, ...] = ("vision", "text")


@dataclass(frozen=True)
class Part:
    """What is done to one tower: a method, its own options, and its stop where that differs."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    forget_at: int | None = None


@dataclass(frozen=True)
class Options:
    """The method of each tower; it must be one that plans directions, as all but the trained ones do."""

    vision: Part = Part("erase-linear", {"shrinkage": 0.5})
    text: Part = Part("uce")

    def __post_init__(self) -> None:
        from unlearning.methods import method_named

        for tower in TOWERS:
            part: Part = getattr(self, tower)
            if part.name == "per-tower":
                raise InputError(f"the {tower} part of per-tower cannot be per-tower again")
            from_plain(method_named(part.name).Options, part.options)


def statistics(method: Method, seed: int) -> Wanted | None:
    """Those of the one part that takes any; where both do, each takes its own of the request."""
    from unlearning.methods import statistics

    wanted = [found for part in _parts(method).values() if (found := statistics(part, seed))]
    return wanted[0] if len(wanted) == 1 else None


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """Both parts' layer scores and directions, each at the base model.

    Raises:
        InputError: not both towers are asked for, or a part plans no directions.
        ModelError: what a part raises.
    """
    from unlearning import methods

    if set(method.towers) != set(TOWERS):
        raise InputError(f"per-tower edits both towers, got {', '.join(method.towers)}")
    scores: dict[str, tuple[LayerScore, ...]] = {}
    directions: dict[str, Mapping[str, torch.Tensor]] = {}
    known = inputs.known_retain
    for tower, part in _parts(method).items():
        # Those of one part: the other one has to take the request's own.
        usable = known is not None and known.statistics.wanted == methods.statistics(part, inputs.seed)
        own_inputs = inputs if usable else replace(inputs, known_retain=None)
        found = methods.profile(model, own_inputs, part, progress)
        if not any(found.directions.values()):
            raise InputError(f"{part.name} plans no directions, so per-tower cannot take it for {tower}")
        for concept, own in found.scores.items():
            scores[concept] = scores.get(concept, ()) + own
        directions |= {f"{tower}:{label}": own for label, own in found.directions.items()}
    return Profile(scores, directions)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Search each part on the base model, then make both changes.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: what a part raises; the weights are the old ones then.
    """
    from unlearning import methods

    outcomes: list[Outcome] = []
    changed: dict[str, torch.Tensor] = {}
    for tower, part in _parts(method).items():
        own = _own(profile, tower)
        # A part may edit more than it plans directions for: razor adds layers as it goes.
        with restored(model.parameters, trainable(model, (tower,))):
            outcomes.append(methods.edit(model, inputs, part, own, progress))
            edits = outcomes[-1].edits
            changed |= {edit.layer: model.parameters[edit.layer].detach().clone() for edit in edits}
    updates = {layer: weight - model.parameters[layer].detach() for layer, weight in changed.items()}
    split = SearchSplit(model, inputs, method, updates)
    seen = measured_curve(
        split,
        split.view(earliest(split, updates)),
        inputs.targets,
        lambda multiple: {layer: update * multiple for layer, update in updates.items()},
        progress,
    )
    curve = tuple(
        StepTrial(JOINT, JOINT, "text", multiple, known.rate, known.score, retained)
        for multiple, known, retained in seen
    )
    assign(model.parameters, changed)
    return Outcome(
        edits=tuple(edit for outcome in outcomes for edit in outcome.edits),
        trials=tuple(trial for outcome in outcomes for trial in outcome.trials),
        curve=curve,
        reached_target=all(outcome.reached_target for outcome in outcomes),
        profile=profile.scores,
    )


def _parts(method: Method) -> dict[Tower, Method]:
    options = from_plain(Options, method.options)
    parts: dict[Tower, Part] = {"vision": options.vision, "text": options.text}
    return {
        tower: replace(
            method,
            name=part.name,
            towers=(tower,),
            options=part.options,
            forget_at=method.forget_at if part.forget_at is None else part.forget_at,
        )
        for tower, part in parts.items()
    }


def _own(profile: Profile, tower: Tower) -> Profile:
    """The tower's part of the profile."""
    mark = f"{tower}:"
    return Profile(
        {concept: tuple(s for s in own if s.tower == tower) for concept, own in profile.scores.items()},
        {label.removeprefix(mark): d for label, d in profile.directions.items() if label.startswith(mark)},
    )
