"""Images near given ones: adversarial for a restorer, and random ones of the same norm as their control."""

from math import sqrt

import torch
from torch import Tensor

from unlearning.families.restoration import RestorationModel


def attack(model: RestorationModel, images: Tensor, radius: float, steps: int) -> Tensor:
    """PGD in an L2 ball: images near the given ones that the model leaves as the given ones are.

    Args:
        model: its weights stay as they are.
        images: (N, 3, H, W) in 0..1.
        radius: of the ball, as root mean square over the values of an image.
        steps: of size 2.5 * radius / steps (Madry et al., arXiv 1706.06083).

    Returns:
        Images (N, 3, H, W) in 0..1.
    """
    size = sqrt(images[0].numel())
    change = torch.zeros_like(images)
    for _ in range(steps):
        change.requires_grad_(True)
        loss = (model.forward(images + change) - images).abs().flatten(1).mean(dim=1).sum()
        (gradient,) = torch.autograd.grad(loss, change)
        with torch.no_grad():
            change = change - 2.5 * radius / steps * size * _unit(gradient)
            change = change * (radius * size / _norm(change)).clamp_max(1.0)
            change = (images + change).clamp(0.0, 1.0) - images
    return (images + change).detach()


def random_like(images: Tensor, attacked: Tensor, generator: torch.Generator) -> Tensor:
    """Images with a random perturbation of the norm that the attack's has, image by image.

    Clipping to 0..1 shortens a perturbation, so the direction is stretched until the clipped one has the
    norm; where that cannot be reached, it comes as near as it can.

    Args:
        images: (N, 3, H, W) in 0..1.
        attacked: the same images, attacked.
        generator: of the directions.
    """
    wanted = _norm(attacked - images)
    direction = _unit(torch.randn(images.shape, generator=generator).to(images))
    length = wanted
    for _ in range(20):
        drawn = (images + length * direction).clamp(0.0, 1.0)
        length = length * (wanted / _norm(drawn - images)).clamp(0.5, 2.0)
    return drawn


def _norm(images: Tensor) -> Tensor:
    """(N, 1, 1, 1) L2 norms, never zero."""
    found: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1).clamp_min(1e-12)
    return found.view(-1, 1, 1, 1)


def _unit(images: Tensor) -> Tensor:
    return images / _norm(images)
