"""Variations of pictures, so that what is trained on a few of them holds for more than these.

    varied    the same thing turned, scaled, moved, mirrored and recoloured
    scenes    one small thing somewhere, or several of them in the quarters of the picture

Shapes: n pictures of H x W pixels, uint8 (n, H, W, 3) in and out.  Every value follows from the generator.
"""

import torch
from torch import Tensor
from torch.nn import functional

TURN, SCALE, MOVE = 0.4, 0.3, 0.2  # at most, to either side: radians; share of the size; share of the picture
RECOLOUR, GREY = 0.1, 0.05  # standard deviation of what a channel takes of another; share without colour
MOST = 4  # things in a scene
SMALLEST_ALONE, SMALLEST_IN_QUARTER = 0.5, 0.7


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture in another view; what comes in at the border repeats the border."""
    n = len(images)
    turn, size = TURN * _either_side(n, generator), 1 + SCALE * _either_side(n, generator)
    mirror = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    places = torch.zeros(n, 2, 3)
    places[:, 0, 0], places[:, 0, 1] = size * turn.cos() * mirror, -size * turn.sin()
    places[:, 1, 0], places[:, 1, 1] = size * turn.sin() * mirror, size * turn.cos()
    # A grid reaches from -1 to 1.
    places[:, :, 2] = 2 * MOVE * torch.stack([_either_side(n, generator) for _ in range(2)], dim=1)
    shown = _sampled(_planes(images), places, "border")
    mix = RECOLOUR * torch.randn(n, 3, 3, generator=generator)
    mix = torch.eye(3) + mix - mix.mean(dim=2, keepdim=True)  # grey stays grey, and white white
    shown = torch.einsum("nij,njhw->nihw", mix, shown)
    grey = torch.rand(n, 1, 1, 1, generator=generator) < GREY
    return _pictures(torch.where(grey, shown.mean(dim=1, keepdim=True), shown))


def scenes(images: Tensor, generator: torch.Generator) -> Tensor:
    """On white, one to `MOST` copies of each picture: one anywhere, or several in different quarters."""
    n = len(images)
    ink = 1 - _planes(images)  # so that what no picture covers, zero, is white
    copies = torch.randint(1, MOST + 1, (n,), generator=generator)
    order = torch.rand(n, MOST, generator=generator).argsort(dim=1)
    alone = copies == 1
    drawn = torch.zeros_like(ink)
    for quarter in range(MOST):
        chance = torch.rand(n, generator=generator)
        smallest = torch.where(alone, SMALLEST_ALONE, SMALLEST_IN_QUARTER)
        cell = torch.where(alone, 1.0, 0.5)
        side = cell * (smallest + (1 - smallest) * chance)
        corner = torch.tensor([quarter % 2, quarter // 2]) / 2 * (~alone)[:, None]
        corner = corner + torch.rand(n, 2, generator=generator) * (cell - side)[:, None]
        middle = 2 * (corner + side[:, None] / 2) - 1
        places = torch.zeros(n, 2, 3)
        places[:, 0, 0] = places[:, 1, 1] = 1 / side
        places[:, :, 2] = -middle / side[:, None]
        drawn += _sampled(ink, places, "zeros") * (order[:, quarter] < copies)[:, None, None, None]
    return _pictures(1 - drawn)


def _either_side(n: int, generator: torch.Generator) -> Tensor:
    """(n,) in -1..1."""
    return 2 * torch.rand(n, generator=generator) - 1


def _planes(images: Tensor) -> Tensor:
    """(n, 3, H, W) in 0..1."""
    return images.permute(0, 3, 1, 2).float() / 255


def _pictures(planes: Tensor) -> Tensor:
    return (planes.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def _sampled(planes: Tensor, places: Tensor, outside: str) -> Tensor:
    grid = functional.affine_grid(places, list(planes.shape), align_corners=False)
    return functional.grid_sample(planes, grid, padding_mode=outside, align_corners=False)
