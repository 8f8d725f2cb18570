"""The single forget gradient, turned so that the step spares the retain set.

Like SLUG one gradient, one layer, one searched step; but along a matrix W (out, in) the step is

    d = eps g (C / e + eps I)^-1        C = E[a a^T] of the layer's inputs on the retain set, e = mean(diag C)

instead of the forget gradient g: for the same first-order gain it changes the layer's outputs on retained
inputs least (`unlearning.moments_solve`).  Kin: the input factor of K-FAC, ROME's C^-1 key
(arXiv 2202.05262), projected-gradient unlearning (arXiv 2312.04095).

Which layers are searched: not those on SLUG's front but, of each tower, the last matrix of at most `widest`
inputs (the projection that makes the features, if it is no wider: nothing bends after it, so first order
goes furthest), and the matrices of largest
tr(g (C + eps e I)^-1 g^T): the squared first-order gain per (damped) disturbance of the layer's outputs.
The blocks of a transformer write to one residual stream, so their disturbances compare; between the
convolutions of a ResNet they do only roughly.

A gain of a normalisation has no matrix and is no candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import LayerScore, Method
from unlearning.families import ANY, Editable, Progress, Request
from unlearning.layer_scores import score_layers
from unlearning.moments_solve import Preconditioner
from unlearning.options import check_numbers
from unlearning.request import JOINT, Outcome, Profile
from unlearning.retain_side import retain_gradient_and_moments
from unlearning.retain_statistics import Wanted
from unlearning.stepping import step_and_edit

FAMILIES = ANY
SHARES_ITEMS = True


@dataclass(frozen=True)
class Options:
    """How far the retain set is spared, and which layers are searched.

    epsilon: damping of C, relative to its mean diagonal; large values give SLUG's step.
    output_epsilon: damping of the output factor, relative likewise; None leaves that factor out.
    layer: the one weight to edit; None for those that `choose` finds.
    choose: "predicted" gain per disturbance, or SLUG's "pareto" front (of matrices).
    layers: how many of each tower are searched where the choice is "predicted", its last one included.
    concepts: "joint" takes one gradient, one layer and one step for all concepts of a request; "apart" one
        for each, added up as SLUG does.
    widest: layers with more inputs than this are no candidates: C would cost more than the gradients.  Some
        projections are wider (2,048 inputs in RN50's vision tower, 1,280 in ViT-H-14's).

    Raises:
        InputError: an option is out of its range.
    """

    epsilon: float = 0.001
    output_epsilon: float | None = None
    layer: str | None = None
    choose: Literal["predicted", "pareto"] = "predicted"
    layers: int = 3
    concepts: Literal["joint", "apart"] = "joint"
    widest: int = 1024

    def __post_init__(self) -> None:
        check_numbers(self, "epsilon", "output_epsilon", above=0)
        check_numbers(self, "layers", "widest", at_least=1)


def profile(model: Editable, inputs: Request, method: Method, progress: Progress) -> Profile:
    """Layer scores of every concept, and preconditioned gradients of the layers to search.

    `on_front` of a score says that the layer is searched.

    Raises:
        InputError: the layer that is asked for is no matrix of these towers, or wider than `widest`.
        ModelError: a gradient or second moment is not finite, or epsilon is too small for rounding.
    """
    options = from_plain(Options, method.options)
    named = {c.name: c for c in model.candidates() if c.tower in method.towers and len(c.shape) > 1}
    if options.layer is not None:
        if options.layer not in named:
            towers = " or ".join(method.towers)
            raise InputError(f"{options.layer!r} is no matrix of the {towers} tower that can be edited")
        named = {options.layer: named[options.layer]}
    retain, moments = retain_gradient_and_moments(
        inputs,
        model,
        list(named),
        method,
        widest=options.widest,
        with_outputs=options.output_epsilon is not None,
        wanted=statistics(method, inputs.seed),
        progress=progress,
    )
    candidates = [named[layer] for layer in named if layer in moments]
    if not candidates:
        named_or_all = options.layer or f"every matrix of the {' or '.join(method.towers)} tower"
        raise InputError(f"{named_or_all} has more inputs than `widest` allows, {options.widest}")
    retain = {c.name: retain[c.name] for c in candidates}  # the others' memory is of no use any more
    scores: dict[str, tuple[LayerScore, ...]] = {}
    directions = {}
    several = options.concepts == "joint" and len(inputs.targets) > 1
    groups = {JOINT: list(inputs.targets)} if several else {inputs.class_ids[t]: [t] for t in inputs.targets}

    def solver(layer: str) -> Preconditioner:
        # Made anew each time: a factor takes twice the memory of its moment, and little time.
        return Preconditioner(layer, moments[layer], options.epsilon, options.output_epsilon)

    for done, (concept, targets) in enumerate(groups.items(), start=1):
        forget = inputs.forget_gradient(model, targets, list(moments), method.micro_batch)
        own = score_layers(candidates, model.parameters, forget, retain)
        if options.choose == "predicted":
            gains = {s.layer: solver(s.layer).gain(forget[s.layer]) for s in own if s.importance > 0}
            own = _with_best_predicted(own, gains, list(moments), options.layers)
        scores |= dict.fromkeys((inputs.class_ids[target] for target in targets), own)
        directions[concept] = {s.layer: solver(s.layer).direction(forget[s.layer]) for s in own if s.on_front}
        progress("forget gradients", done, len(groups))
    return Profile(scores, directions)


def statistics(method: Method, seed: int) -> Wanted | None:
    """Which statistics of the whole retain set would do; None if they have to be the request's own.

    With the choice "predicted" the retain gradient decides nothing: the alignment that is reported may
    be with the gradient of the whole set.
    """
    options = from_plain(Options, method.options)
    if options.choose != "predicted" or options.output_epsilon is not None:
        return None
    return Wanted(method.towers, method.retain_batch, options.widest, seed)


def edit(model: Editable, inputs: Request, method: Method, profile: Profile, progress: Progress) -> Outcome:
    """Search every direction of every concept, choose, combine, and edit the model in place.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, or every step breaks the model.
    """
    return step_and_edit(model, inputs, method, profile, progress)


def _with_best_predicted(
    scores: Sequence[LayerScore], gains: Mapping[str, float], order: Sequence[str], layers: int
) -> tuple[LayerScore, ...]:
    """The scores, with `on_front` set for the layers of each tower that "predicted" means and no others.

    Args:
        scores: of all candidates.
        gains: of those that can be stepped.
        order: the layers as the backward pass meets them.
        layers: how many of each tower are chosen.
    """
    tower_of = {s.layer: s.tower for s in scores if s.layer in gains}
    chosen: set[str] = set()
    for tower in {s.tower for s in scores}:
        own = [layer for layer in order if tower_of.get(layer) == tower]
        chosen.update([*own[:1], *sorted(own[1:], key=lambda layer: -gains[layer])][:layers])
    return tuple(replace(s, on_front=s.layer in chosen) for s in scores)
