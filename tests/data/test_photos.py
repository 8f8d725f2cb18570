"""The photos: pinned files with a licence each, and none in two roles."""

from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from contracts.errors import DigestMismatch, InputError, SetError
from data.photos import LEFT_OUT, PHOTOS, PackagedFile, card, check_roles, of_role


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An importable package with one file."""
    (tmp_path / "some_photos").mkdir()
    (tmp_path / "some_photos" / "a.png").write_bytes(b"photo")
    monkeypatch.syspath_prepend(tmp_path)
    return PackagedFile("some_photos", "a.png", sha256(b"photo").hexdigest())


def test_a_packaged_file_is_read_only_if_it_is_the_pinned_one(package):
    assert package.read() == b"photo"
    with pytest.raises(DigestMismatch, match=r"some_photos/a\.png is"):
        replace(package, sha256=sha256(b"another").hexdigest()).read()


def test_an_absent_package_and_an_absent_file_are_named(package):
    with pytest.raises(InputError, match=r"no_such_package/a\.png"):
        replace(package, package="no_such_package").read()
    with pytest.raises(InputError, match=r"some_photos/b\.png"):
        replace(package, path="b.png").read()


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
