"""uce: what is to be forgotten is rewritten to mean nothing in particular, in closed form.

Unified concept editing (Gandikota et al., arXiv 2308.14761) changes one matrix so that the keys k_i of
what is to be forgotten give chosen values and all other keys give what they gave.  Damped least squares:

    D = w/F sum_i d_i k_i^T  (1/R sum_j k_j k_j^T + w/F sum_i k_i k_i^T + eps e I)^-1

with d_i = what is missing at the layer's output, F forgotten and R retained keys, and e the mean energy
of a retained key.  Here d_i leads from what a forgotten item gives to the mean of what retained ones give.
Unlike along a gradient, every item is moved by its own lack and no further.

D is a sum over the concepts of a request, D_c of the d_i of concept c, which leaves the others' keys where
they are.  A key that is like retained ones is led less far than it should: the weight w of its concept grows
until `share` of the change is made.  Steps are searched as SLUG does it, per concept and then one factor on
the sum of all, but not below 1, the whole rewrite.

    text tower     the last matrix with a nonlinearity before it; keys are those of the names in all
                   templates and of the captions that name it.  No image is looked at.
    vision tower   the projection that makes the features; keys are the images' pooled activations

`unlearning.keys` says what the key of an item is where its feature reads one token, and where it reads all.

The paper edits the keys and values of a diffusion model's cross-attention: `uce_cross_attention`.

Shapes: F and R items, d inputs and o outputs of the matrix.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import ModelError
from contracts.values import LayerScore, Method, Tower
from unlearning.families.clip import ClipModel
from unlearning.keys import keyed_matrix, keys
from unlearning.least_squares import duals
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.stepping import step_and_edit
from unlearning.zero_shot import fill_templates

# Of a concept's weight.  Names that are the same as retained ones are not led apart by any weight.
DOUBLINGS = 12


@dataclass(frozen=True)
class Options:
    """How much the two sides count.

    share: of the change wanted for a concept that a step of 1 has to make, below 1.
    epsilon: damping, relative to the mean energy of a retained key's coordinate.
    least: smallest step; 1 is the whole rewrite, 0 looks for the smallest change that hides the concept.

    Raises:
        InputError: an option is out of its range.
    """

    share: float = 0.9
    epsilon: float = 1e-3
    least: float = 1.0

    def __post_init__(self) -> None:
        check_numbers(self, "share", at_least=0, below=1)
        check_numbers(self, "epsilon", above=0)
        check_numbers(self, "least", at_least=0)


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """The rewrite of each tower's layer, by concept.

    Of a score, importance is the share of the wanted change that a step of 1 makes, and alignment the
    mean square of what it does to retained outputs, in units of their variance.

    Raises:
        ModelError: a tower is of a type that `unlearning.keys` does not know, features are not finite, or
            epsilon is too small for rounding.
    """
    options = from_plain(Options, method.options)
    scores: dict[str, list[LayerScore]] = {inputs.class_ids[target]: [] for target in inputs.targets}
    directions: dict[str, dict[str, Tensor]] = {concept: {} for concept in scores}
    for done, tower in enumerate(method.towers, start=1):
        layer = keyed_matrix(model, tower).layer
        gone_items, owners, kept_items = _items(inputs, tower)
        gone, kept = (keys(model, tower, part, method.micro_batch) for part in (gone_items, kept_items))
        weight = model.parameters[layer.weight]
        wanted = kept.outputs.mean(dim=0) - gone.outputs
        changes = rewrite(gone.inputs, wanted, owners, kept.inputs, options)
        for target, change in changes.items():
            concept, own = inputs.class_ids[target], owners == target
            if not torch.isfinite(change).all():
                raise ModelError(f"what enters or leaves {layer.weight} is not finite")
            if not (change.any() and weight.any()):
                raise ModelError(
                    f"{layer.weight} cannot lead {concept} anywhere: it is zero, or would not change"
                )
            directions[concept][layer.weight] = (
                (change.T if layer.transposed else change).to(weight).contiguous()
            )
            scores[concept].append(
                LayerScore(
                    layer.weight,
                    tower,
                    weight.numel(),
                    importance=_made(gone.inputs[own], wanted[own], change),
                    alignment=_share(
                        _energy(kept.inputs @ change.T), _energy(kept.outputs - kept.outputs.mean(dim=0))
                    ),
                    on_front=True,
                )
            )
        progress("keys", done, len(method.towers))
    return Profile({concept: tuple(own) for concept, own in scores.items()}, directions)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Search the step, choose a layer, and edit the model in place.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: every step breaks the model.
    """
    least = from_plain(Options, method.options).least
    return step_and_edit(model, inputs, method, profile, progress, least=least)


def rewrite(
    gone: Tensor, wanted: Tensor, owners: Tensor, kept: Tensor, options: Options
) -> dict[int, Tensor]:
    """The change (o, d) of the matrix for every concept, at the smallest weights that make `share` of each.

    Args:
        gone: keys (F, d) that are to give something else.
        wanted: (F, o) what has to be added to what they give.
        owners: (F,) the concept each belongs to.
        kept: keys (R, d) that are to give what they gave.
        options: share and damping.
    """
    retained = kept.T @ kept / len(kept)
    weights = torch.ones(len(gone), dtype=gone.dtype, device=gone.device)
    changes: dict[int, Tensor] = {}
    for _ in range(DOUBLINGS):
        solved = duals(gone, weights / len(gone), retained, options.epsilon)
        missed = False
        for concept in sorted(set(owners.tolist())):
            own = owners == concept
            changes[concept] = wanted[own].T @ solved[own]
            if _made(gone[own], wanted[own], changes[concept]) < options.share:
                weights[own] *= 2
                missed = True
        if not missed:
            break
    return changes


def _items(inputs: UnlearnInputs, tower: Tower) -> tuple[Any, Tensor, Any]:
    """What is to be forgotten, the target that each of it belongs to, and what is to be kept.

    As the tower reads it: texts or images.  A caption weighs as much as a name in a template, and the same
    text counts once, of several targets for the first.  A caption that does not name its target says nothing
    of it: for a hand that drew an apple, "a drawing of an apple" must not be led away.  What retained items
    bear as well is kept, but for the names themselves.
    """
    if tower == "vision":
        owners = torch.as_tensor(inputs.forget_labels)
        return torch.as_tensor(inputs.forget_images), owners, torch.as_tensor(inputs.retain_images)
    gone: dict[str, int] = {}
    for target in inputs.targets:
        for text in fill_templates([inputs.class_names[target]], inputs.templates):
            gone.setdefault(text, target)
    others = [name for i, name in enumerate(inputs.class_names) if i not in set(inputs.targets)]
    kept = dict.fromkeys([*fill_templates(others, inputs.templates), *inputs.retain_captions])
    kept = {text: None for text in kept if text not in gone}
    for caption, label in zip(inputs.forget_captions, inputs.forget_labels.tolist(), strict=True):
        if inputs.class_names[label].casefold() in caption.casefold() and caption not in kept:
            gone.setdefault(caption, label)
    return list(gone), torch.tensor(list(gone.values())), list(kept)


def _made(keys: Tensor, wanted: Tensor, change: Tensor) -> float:
    """Share of the wanted changes that a change of the matrix makes: 1 - |what is left|^2 / |wanted|^2."""
    return 1.0 - _share(_energy(keys @ change.T - wanted), _energy(wanted))


def _share(part: float, whole: float) -> float:
    """Part of the whole; none of nothing (items that are all the same have no variance)."""
    return part / whole if whole else 0.0


def _energy(rows: Tensor) -> float:
    """Mean squared length of the rows."""
    return float(rows.square().sum(dim=1).mean())
