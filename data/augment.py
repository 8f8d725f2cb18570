"""Random views of transparent drawings for training, a whole batch at a time.

Strong colour changes matter most: hands differ in palette before they differ in shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(drawings: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Colour change, affine change, random background and a cut-out square.

    Args:
        drawings: uint8 RGBA, shape (N, H, W, 4).
        size: side of the output in pixels.
        generator: the only source of chance.

    Returns:
        float RGB in 0..1, shape (N, 3, size, size).
    """
    n = len(drawings)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=generator)

    pixels = drawings.permute(0, 3, 1, 2).float() / 255
    rgb, alpha = pixels[:, :3], pixels[:, 3:]

    grey = rgb.mean(1, keepdim=True)
    rgb = grey + (rgb - grey) * (1.4 * uniform(1, 1, 1))
    mixing = torch.eye(3) + 0.25 * normal(3, 3) * (uniform(1, 1) < 0.5)
    rgb = torch.einsum("nij,njhw->nihw", mixing, rgb)
    rgb = (rgb * (1 + 0.25 * normal(3, 1, 1)) + 0.1 * normal(3, 1, 1)).clamp(0, 1)

    angle = (2 * uniform() - 1) * math.radians(18)
    scale = 0.75 + 0.45 * uniform()
    stretch = torch.exp(0.15 * normal())
    flip = torch.where(uniform() < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    across = torch.stack([cos * flip * stretch, -sin, 0.3 * (uniform() - 0.5)], 1)
    down = torch.stack([sin * flip, cos / stretch, 0.3 * (uniform() - 0.5)], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), [n, 4, size, size], align_corners=False)
    moved = F.grid_sample(torch.cat([rgb * alpha, alpha], 1), grid, align_corners=False)

    white = (uniform(1, 1, 1) < 0.6).float()
    background = white + (1 - white) * uniform(3, 1, 1)
    image = moved[:, :3] + background * (1 - moved[:, 3:])
    return torch.where(_square(n, size, generator), uniform(3, 1, 1), image)


def _square(n: int, size: int, generator: torch.Generator) -> Tensor:
    """A random square in every second image, shape (N, 1, size, size)."""
    centre = (torch.rand(n, 2, generator=generator) * size).long()
    reach = (torch.rand(n, generator=generator) * size * 0.2).long()
    reach = reach * (torch.rand(n, generator=generator) < 0.5)
    near = (torch.arange(size) - centre[:, :, None]).abs() < reach[:, None, None]
    return (near[:, 0, :, None] & near[:, 1, None, :])[:, None]


def plain(drawings: Tensor) -> Tensor:
    """The drawings on white, uint8 RGB of shape (N, H, W, 3)."""
    pixels = drawings.float()
    alpha = pixels[..., 3:] / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)
