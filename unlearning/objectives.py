"""The two losses of SLUG on CLIP features.

Shapes: B items of a batch, D embedding width; all features have unit length.
"""

import torch
from torch import Tensor
from torch.nn import functional


def forget_loss(image: Tensor, text: Tensor) -> Tensor:
    """Mean of 1 - cos(image_i, text_i): cosine embedding loss of positive pairs (arXiv 2407.11867, eq. 4).

    Unlearning *ascends* it.

    Args:
        image: (B, D) features.
        text: (B, D) features, row i belonging to image i.
    """
    return (1.0 - (image * text).sum(dim=-1)).mean()


def retain_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric contrastive loss of CLIP with the batch as negatives (arXiv 2407.11867, eq. 2-3).

    Args:
        image: (B, D) features.
        text: (B, D) features, row i belonging to image i.
        logit_scale: factor on the cosines (the exponentiated parameter), a scalar.
    """
    logits = logit_scale * image @ text.T
    target = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
