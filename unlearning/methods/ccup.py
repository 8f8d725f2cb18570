"""CCUP: the joint space loses the directions of the forgotten names; no image is looked at.

Mishra et al., "Erasing CLIP Memories", arXiv 2512.14137.  With U (D, k) an orthonormal basis of the span
of the k forgotten class embeddings, the final projection is multiplied by

    P = I - strength * U U^T,   0 < strength <= 1 (the paper's partial projection; 1 = null space)

so that at strength 1 no image has any similarity to a forgotten name, and a name loses to the
others exactly its component in the span.  The edit has rank k and needs only the names.

The paper projects the image side; so does this, wherever the vision tower may be edited.  Ours:
the projection's bias is multiplied too where there is one (the map is linear on the feature, not on the
weight); for requests that allow only the text tower the text projection is multiplied instead;
of a grid of `search_steps` strengths the sufficient one that keeps most on the search split is taken.
Descriptions of the paper mention embeddings of retained classes as well; how they enter was not
available to us, so P is the plain null-space projection of its abstract.

Shapes: C classes, k forgotten ones, D embedding width, W tower width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import ModelError
from contracts.values import Method, Tower
from unlearning.attempts import Judge, check_profile, settle, try_each, unprofiled
from unlearning.families.clip import ClipModel
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.zero_shot import class_embeddings

# Singular values below this share of the largest are names that say the same.
RANK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Options:
    """No options: the strength is searched."""


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """No layer is scored: the last projection is the only one in question."""
    return unprofiled(inputs)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Try strengths, choose, and edit the last projection in place; the step size is the strength.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: an embedding is not finite, the tower has no final projection, or every strength breaks
            the model.
    """
    check_profile(profile, inputs)
    from_plain(Options, method.options)
    with torch.no_grad():
        names = [inputs.class_names[target] for target in inputs.targets]
        basis = span(class_embeddings(model, names, inputs.templates, method.micro_batch))
    layers = final_projection(model, "vision" if "vision" in method.towers else "text")
    judge = Judge(model, inputs, method, tuple(layers))
    attempts = try_each(
        model,
        judge,
        layers,
        [step / method.search_steps for step in range(1, method.search_steps + 1)],
        lambda weights, strength: (
            strength,
            {name: without(weight, basis, strength, axis=layers[name]) for name, weight in weights.items()},
        ),
        progress,
    )
    return settle(model, inputs, judge, attempts, profile)


def span(embeddings: Tensor) -> Tensor:
    """Orthonormal basis (D, k) of the span of class embeddings (C, D); k < C where names say the same.

    Raises:
        ModelError: an embedding is not finite.
    """
    if not bool(torch.isfinite(embeddings).all()):
        raise ModelError("the embeddings of the names to forget are not finite")
    left, values, _ = torch.linalg.svd(embeddings.double().T, full_matrices=False)
    basis: Tensor = left[:, values > RANK_TOLERANCE * values[0]]
    return basis.to(embeddings.dtype)


def without(weight: Tensor, basis: Tensor, strength: float, axis: int) -> Tensor:
    """`weight` with I - strength * basis basis^T applied along `axis`, whose length is D."""
    moved = weight.movedim(axis, -1)
    return (moved - strength * (moved @ basis) @ basis.T).movedim(-1, axis)


def final_projection(model: ClipModel, tower: Tower) -> dict[str, int]:
    """The tensors whose output is the feature before normalisation, and which of their axes is D.

    Raises:
        ModelError: the tower ends without a projection.
    """
    axes = {
        # Linear layers hold (D, W) and a bias (D,); ViT and text towers multiply by a bare (W, D).
        "vision": {
            "visual.attnpool.c_proj.weight": 0,
            "visual.attnpool.c_proj.bias": 0,
            "visual.proj": 1,
            "visual.head.proj.weight": 0,
            "visual.head.proj.bias": 0,
        },
        "text": {
            "text_projection.weight": 0,
            "text_projection.bias": 0,
            "text_projection": 1,
            "text.proj.weight": 0,
        },
    }[tower]
    found = {name: axis for name, axis in axes.items() if name in model.parameters}
    if not found:
        raise ModelError(f"the {tower} tower has no final projection to multiply")
    return found
