"""erase-linear: closed-form concept erasure (LEACE, `unlearning.leace`) folded into one linear layer.

    moments   of the layer's inputs over forget and retain set, z = one-hot of the forgotten concepts;
              images for the vision tower, captions for the text tower; one forward pass, no gradient
    erase     r(x) = x - P (x - mu), all concepts at once, rank of P <= number of concepts
    fold      W r(x) + b = W (1 - P) x + (b + W P mu): weight and bias of that layer change, nothing else
    strength  m >= `least`: W + m (W' - W) and b + m (b' - b) apply x - m P (x - mu); the smallest m that
              brings FA@forget_at on the search split down to the target, m = 1 (the erasure) tried first

At m = 1 no linear probe tells the concepts from that layer's output *on the forget and retain set*; at
any other m the outputs' means stay apart, so m < 1 is suppression by a smaller change.  What follows must
be linear for this to hold of the features; a residual connection carries the concept around the edit,
and a convolution or a value projection guards what all positions have in common, their mean.  So
without a named layer the search is between those that nothing passes by: the layers of a tower's head,
and the first attention of the text tower, before which the end token has not heard of its text.

Where the constant W P mu goes (exact in all cases, tested against the unfolded map):

    linear layers of blocks, attention out_proj, attnpool v_proj and c_proj   their own bias
    in_proj of a block's attention: its value rows only                       the same rows of in_proj_bias
    1x1 convolutions of a ModifiedResNet or EfficientNet                      bias of the BatchNorm after it
    linear layers of a BERT but queries and keys, projections of both         their own bias, if they have one
    visual.proj, text_projection                                              none: linear map, mu = 0

Queries and keys only steer attention and are not offered; neither are larger convolutions, where an
input is seen through several weights.  Concepts are erased jointly: one map, one strength.

Shapes: n items, L positions (tokens, pixels) of an item, d features, k concepts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import LayerScore, Method, Tower
from unlearning.families.clip import ClipModel, tower_of
from unlearning.labelled_inputs import input_moments
from unlearning.leace import Erasure, LabelledMoments, fit_erasure
from unlearning.linear_layers import LinearLayer, linear_layers
from unlearning.options import check_numbers
from unlearning.request import JOINT, Outcome, Profile, Progress, UnlearnInputs
from unlearning.stepping import step_and_edit

# Captions repeat a few templates: their covariance has so few large directions that a share of its mean
# diagonal drowns the rest.  Measured on the reference model, where images bear more and gain by it.
SHRINKAGE: Mapping[Tower, float] = {"vision": 0.2, "text": 0.01}


@dataclass(frozen=True)
class Options:
    """What only this method can be told.

    layer: weight to edit; None for the one of those that nothing passes by which keeps most at the target.
    shrinkage: of the inputs' covariance towards its mean diagonal, in 0..1; None for `SHRINKAGE`.
    least: smallest strength; 1 erases fully, 0 looks for the smallest change that hides the concept.
    most: largest strength; 1 never goes beyond the erasure, None has no limit.

    Raises:
        InputError: an option is out of its range.
    """

    layer: str | None = None
    shrinkage: float | None = None
    least: float = 1.0
    most: float | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "shrinkage", at_least=0, at_most=1)
        check_numbers(self, "least", at_least=0)
        check_numbers(self, "most", at_least=self.least)


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """The joint erasure of every layer in question, as updates of its weight and bias.

    The scores of a layer are those of the erasure: importance = share of the labels' variance that the
    erased directions tell (how much there is to erase, at most 1), alignment = share of the inputs'
    variance that is moved (what it costs).  The layers searched count as the front.

    Raises:
        InputError: an option is out of its range, or the layer cannot take an erasure.
        ModelError: a layer's inputs are not finite.
    """
    options = from_plain(Options, method.options)
    layers = _asked_layers(model, method, options.layer)
    scores: list[LayerScore] = []
    updates: dict[str, Tensor] = {}
    for tower, own in groupby(layers, key=lambda layer: tower_of(layer.weight)):
        searched = list(own)
        shrinkage = SHRINKAGE[tower] if options.shrinkage is None else options.shrinkage
        moments = input_moments(model, tower, searched, inputs, method.micro_batch, progress)
        for layer in searched:
            seen = moments[layer.weight]
            erasure = fit_erasure(seen, shrinkage, affine=layer.bias is not None)
            update = layer.updates(model.parameters, erasure)
            effective = bool(update[layer.weight].any())
            scores.append(_score(layer, tower, model, erasure, seen, effective))
            updates |= update if effective else {}
    concepts = [inputs.class_ids[target] for target in inputs.targets]
    return Profile(dict.fromkeys(concepts, tuple(scores)), {_label(concepts): updates})


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Search the strength in every layer of the profile, choose one, and edit the model in place.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: no layer tells the concepts, or every strength breaks the model.
    """
    options = from_plain(Options, method.options)
    moved_with = {name: layer.weight for layer in linear_layers(model) for name in layer.tensors}
    return step_and_edit(
        model,
        inputs,
        method,
        profile,
        progress,
        least=options.least,
        most=options.most,
        first=lambda weight_norm, direction_norm: 1.0,
        moved_with=moved_with,
    )


def _asked_layers(model: ClipModel, method: Method, named: str | None) -> list[LinearLayer]:
    """The named layer, or those of the towers asked for that nothing passes by.

    Raises:
        InputError: it cannot take an erasure, or its tower is not asked for; or none is named and every
            layer of the towers has something that passes by it, or is not used.
    """
    known = linear_layers(model)
    if named is None:
        alone = [layer for layer in known if layer.alone and tower_of(layer.weight) in method.towers]
        if not alone:
            raise InputError(f"no layer of {' or '.join(method.towers)} is passed by nothing; name a layer")
        return alone
    if named not in model.parameters:
        raise InputError(f"the model has no weight {named!r} to fold an erasure into")
    found = [layer for layer in known if layer.weight == named]
    if not found:
        owner, _, own = named.rpartition(".")
        kind = type(model.net.get_submodule(owner)).__name__
        shape = tuple(model.parameters[named].shape)
        raise InputError(
            f"{named} ({own} {shape} of a {kind}) is no layer that an erasure can be folded into"
        )
    if tower_of(named) not in method.towers:
        raise InputError(f"{named} is not in the tower asked for, {' or '.join(method.towers)}")
    return found


def _label(concepts: Sequence[str]) -> str:
    return concepts[0] if len(concepts) == 1 else JOINT


def _score(
    layer: LinearLayer,
    tower: Tower,
    model: ClipModel,
    erasure: Erasure,
    seen: LabelledMoments,
    effective: bool,
) -> LayerScore:
    n_params = model.parameters[layer.weight].numel()
    if not effective:
        return LayerScore(layer.weight, tower, n_params, 0.0, 0.0, on_front=False)
    # Of the covariance as it is: shrunk, correlations could exceed 1.
    read = erasure.right @ seen.cov_xx @ erasure.right.T
    cross = erasure.right @ seen.cov_xz
    by_read, by_label = (torch.linalg.pinv(own, hermitian=True) for own in (read, seen.cov_zz))
    told = (by_read @ cross @ by_label @ cross.T).trace()
    moved = (read @ erasure.left.T @ erasure.left).trace()
    return LayerScore(
        layer.weight,
        tower,
        n_params,
        importance=float(told) / len(seen.cov_zz),
        alignment=float(moved / seen.cov_xx.trace()),
        on_front=True,
    )
