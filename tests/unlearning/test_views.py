"""Variations of pictures: what must change in them, and what must not."""

from collections.abc import Callable

import pytest
import torch

from unlearning.views import MOST, SMALLEST_ALONE, SMALLEST_IN_QUARTER, scenes, varied


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pictures() -> torch.Tensor:
    """200 pictures, a block of one colour each on white."""
    shown = torch.full((200, 24, 24, 3), 255, dtype=torch.uint8)
    shown[:, 6:18, 6:18] = torch.randint(0, 120, (200, 1, 1, 3), generator=generator()).byte()
    return shown


@pytest.mark.parametrize("make", [varied, scenes])
def test_the_same_generator_draws_the_same(
    make: Callable[[torch.Tensor, torch.Generator], torch.Tensor], pictures: torch.Tensor
) -> None:
    found = make(pictures, generator(1))
    assert (found.shape, found.dtype) == (pictures.shape, torch.uint8)
    assert torch.equal(found, make(pictures, generator(1)))
    assert not torch.equal(found, make(pictures, generator(2)))


def test_nothing_is_still_nothing() -> None:
    """White has no edges to turn and no colour to change."""
    white = torch.full((20, 16, 16, 3), 255, dtype=torch.uint8)
    assert int(varied(white, generator()).min()) >= 254
    assert int(scenes(white, generator()).min()) >= 254


def test_a_view_shows_the_thing_elsewhere_and_in_other_colours(pictures: torch.Tensor) -> None:
    found = varied(pictures, generator())
    assert all(not torch.equal(a, b) for a, b in zip(found, pictures, strict=True))
    inked = (found < 250).any(dim=3).float().mean(dim=(1, 2))
    # A quarter of each picture before; scaled to 0.7 to 1.3, and some of it may be out of sight.
    assert float(inked.min()) > 0.03
    assert float(inked.max()) < 0.6
    assert float(inked.std()) > 0.02
    spread = found.float().std(dim=3).mean(dim=(1, 2))
    assert 0.01 < float((spread < 1).float().mean()) < 0.12  # those without colour


def test_a_scene_holds_one_thing_or_several_in_quarters_of_their_own() -> None:
    side = 40
    black = torch.zeros(300, side, side, 3, dtype=torch.uint8)
    dark = (scenes(black, generator()) < 128).all(dim=3).float()
    area = dark.mean(dim=(1, 2))
    half = side // 2
    quarters = torch.stack(
        [dark[:, y : y + half, x : x + half].mean(dim=(1, 2)) for y in (0, half) for x in (0, half)], dim=1
    )
    slack = 4 / side  # of an edge, in pixels
    low, high = (SMALLEST_IN_QUARTER - slack) ** 2, 1.0
    # Several: every quarter is empty or as full as a copy makes it.  One may lie across quarters.
    several = ((quarters == 0) | ((quarters > low) & (quarters <= high))).all(dim=1) & (area <= 1)
    alone = (area >= (SMALLEST_ALONE - slack) ** 2) & (area <= 1)
    assert bool((several | alone).all())
    copies = (quarters[several] > 0).sum(dim=1)
    assert set(copies.tolist()) == set(range(1, MOST + 1)) or set(copies.tolist()) == set(range(2, MOST + 1))
    counted = torch.bincount(copies, minlength=MOST + 1)[2:].float() / len(black)
    assert bool((counted > 0.15).all())  # a quarter of all pictures each


def test_a_scene_keeps_the_colours(pictures: torch.Tensor) -> None:
    found = scenes(pictures, generator())
    darkest = found.flatten(1, 2).min(dim=1).values.int()
    assert int((darkest - pictures[:, 12, 12].int()).abs().max()) <= 2
