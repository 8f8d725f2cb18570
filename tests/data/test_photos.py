"""The photos: pinned files with a licence each, and none in two roles."""

from dataclasses import replace

import numpy as np
import pytest

from contracts.errors import SetError
from data.photos import LEFT_OUT, PHOTOS, card, check_roles, of_role


def test_every_photo_is_the_pinned_one_in_colour_and_large_enough():
    for photo in PHOTOS:
        pixels = photo.pixels()
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 256


def test_no_photo_has_two_roles_and_every_role_has_photos():
    check_roles(PHOTOS)
    by_role = [{photo.file.sha256 for photo in of_role(role)} for role in ("train", "search", "holdout")]
    assert all(by_role)
    assert len(set.union(*by_role)) == sum(map(len, by_role)) == len(PHOTOS)


@pytest.mark.parametrize("same", ["scene", "file"])
def test_a_photo_in_two_roles_is_refused(same):
    trained, held = of_role("train")[0], of_role("holdout")[0]
    leaked = replace(held, **{same: getattr(trained, same)})
    with pytest.raises(SetError, match="there twice, as train and as holdout photo"):
        check_roles([trained, leaked])


def test_measured_depth_covers_its_photo_from_near_to_far():
    measured = [photo for photo in PHOTOS if photo.disparity is not None]
    assert len(measured) == 1
    depth = measured[0].depth()
    assert depth.shape == measured[0].pixels().shape[:2]
    assert np.isfinite(depth).all()
    assert (depth.min(), depth.max()) == (0, 1)
    # The floor at the bottom is nearer than the shelves at the back; were disparity taken for depth, farther.
    assert depth[-40:].mean() < depth[:40].mean()


def test_a_photo_without_disparity_has_no_depth():
    assert of_role("holdout")[0].depth() is None


def test_the_card_names_every_photo_its_licence_and_its_author():
    text = card()
    for photo in PHOTOS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {photo.scene} |")]
        assert photo.licence in row
        assert photo.attribution in row
    assert all(reason in text for reason in LEFT_OUT.values())
