"""The two losses."""

import math

import torch
from torch.nn import functional

from unlearning.objectives import forget_loss, retain_loss


def unit(n: int, d: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_forget_loss_is_torchs_cosine_embedding_loss_on_positive_pairs() -> None:
    image, text = unit(5, 8, 0), unit(5, 8, 1)
    expected = functional.cosine_embedding_loss(image, text, torch.ones(5))
    torch.testing.assert_close(forget_loss(image, text), expected)


def test_retain_loss_is_open_clips() -> None:
    from open_clip.loss import ClipLoss

    image, text = unit(6, 8, 2), unit(6, 8, 3)
    torch.testing.assert_close(retain_loss(image, text, torch.tensor(7.0)), ClipLoss()(image, text, 7.0))


def test_with_one_name_for_all_captions_the_image_side_learns_nothing() -> None:
    # Why captions must be the real ones: the image-to-text loss of equal texts is the constant log B.
    image, text = unit(6, 8, 2).requires_grad_(), unit(1, 8, 3).expand(6, 8)
    loss = functional.cross_entropy(7.0 * image @ text.T, torch.arange(6))
    assert math.isclose(loss.item(), math.log(6), rel_tol=1e-6)
    (grad,) = torch.autograd.grad(loss, image)
    assert grad.abs().max() < 1e-6
