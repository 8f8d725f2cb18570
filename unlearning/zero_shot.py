"""Zero-shot classification and retrieval: class embeddings, ranks, rates.

A rank is 1-based.  Ties are decided for the reading that is worse for us: a forgotten item
counts as still known if it *could* stand that high (`ties="best"`), a retained item as known only
if it *must* (`ties="worst"`).  Otherwise a model whose features collapse to one point, where every
score ties, would look as if it had forgotten perfectly and kept everything.

Shapes: N images, C classes, T templates, D embedding width; features have unit length.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError, ModelError
from unlearning.families.clip import ClipModel

Ties = Literal["best", "worst"]


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """T * C texts, all classes of the first template first.

    Raises:
        InputError: no names, no templates, or a template without exactly one {}.
    """
    if not names or not templates:
        raise InputError(f"a zero-shot task needs names and templates, got {len(names)} and {len(templates)}")
    for number, template in enumerate(templates):
        if template.count("{}") != 1:
            raise InputError(f"template {number} must hold {{}} exactly once")
    return [template.replace("{}", name) for template in templates for name in names]


def class_embeddings(
    model: ClipModel, names: Sequence[str], templates: Sequence[str], micro_batch: int = 64
) -> Tensor:
    """(C, D): mean of a class's normalised template embeddings, normalised again."""
    texts = fill_templates(names, templates)
    features = model.encode_texts(texts, micro_batch)
    return pool_templates(features.view(len(templates), len(names), -1))


def pool_templates(features: Tensor) -> Tensor:
    """(T, C, D) normalised text features to (C, D) class embeddings."""
    return functional.normalize(features.mean(dim=0), dim=-1)


def classification_ranks(scores: Tensor, labels: Tensor, ties: Ties) -> Tensor:
    """Rank of every image's true class among all classes (image to text).

    Args:
        scores: (N, C) similarity of images and class embeddings.
        labels: (N,) true class of each image.
        ties: "best" for forget items, "worst" for retained ones.

    Returns:
        (N,) ranks, 1 = top.

    Raises:
        ModelError: a score is NaN.
    """
    _refuse_nan(scores)
    true = scores.gather(1, labels[:, None])
    if ties == "best":
        return 1 + (scores > true).sum(dim=1)
    return (scores >= true).sum(dim=1)


def retrieval_ranks(scores: Tensor, labels: Tensor, classes: Tensor, ties: Ties) -> Tensor:
    """Rank of the best image of each class among all images (text to image).

    Args:
        scores: (N, C) similarity of images and class embeddings.
        labels: (N,) true class of each image.
        classes: (K,) the classes to look up.
        ties: "best" for forgotten classes, "worst" for retained ones; between images of the class
            itself a tie means nothing.

    Returns:
        (K,) ranks, 1 = top; hit@k is rank <= k.

    Raises:
        InputError: a class has no image.
        ModelError: a score is NaN.
    """
    _refuse_nan(scores)
    own = labels[:, None] == classes[None, :]
    if not bool(own.any(dim=0).all()):
        raise InputError("a class of the retrieval task has no image")
    asked = scores[:, classes]
    best = asked.masked_fill(~own, -torch.inf).amax(dim=0)
    others = asked > best if ties == "best" else asked >= best
    return 1 + (others & ~own).sum(dim=0)


def rate_at(ranks: Tensor, k: int) -> float:
    """Share of ranks within the top k (FA@k over forget items, TA@k over retained ones)."""
    return float((ranks <= k).double().mean())


def _refuse_nan(scores: Tensor) -> None:
    if bool(scores.isnan().any()):
        raise ModelError("similarity scores hold NaN: the model does not give usable features")
