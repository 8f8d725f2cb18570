"""The photos that the image restorers are trained and measured on: files of installed packages.

Nothing is downloaded and no photo is copied into the repository, but crops of them are: into the sets
and into the bundle.  So only photos stand here whose licence says that this is allowed, and no
photo of a person.  A photo has one role; `check_roles` refuses a list in which it has two.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from contracts.errors import SetError
from data.package_file import PackageFile

PhotoRole = Literal["train", "search", "holdout"]

# Metres are of no use to haze of a random strength: only f B / (disparity + offset) up to a factor is.
_PRINCIPAL_POINT_OFFSET = 31.086  # pixels, from the calibration in scikit-image's documentation


@dataclass(frozen=True)
class Photo:
    """One photo, whose it is, and what it is for.

    Attributes:
        scene: what is shown; two shots of one scene (a stereo pair) are one photo here.
        role: "train" photos are trained on, a part of their crops is what may be forgotten; step sizes
            are searched on "search" photos; verdicts are computed on "holdout" photos.
        disparity: .npz with the measured disparity of every pixel, where there is one.
    """

    scene: str
    role: PhotoRole
    file: PackageFile
    licence: str
    attribution: str
    disparity: PackageFile | None = None

    @property
    def id(self) -> str:
        """First 16 hex digits of the file's sha256."""
        return self.file.sha256[:16]

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The photo as it is stored, uint8 RGB (H, W, 3); a grey one has three equal channels.

        Raises:
            InputError, DigestMismatch: see `PackageFile.read`.
        """
        return np.asarray(Image.open(io.BytesIO(self.file.read())).convert("RGB"))

    def depth(self) -> npt.NDArray[np.float32] | None:
        """Measured depth from 0 (nearest) to 1 (farthest), float32 (H, W); None where nobody measured it.

        Pixels without a disparity (occluded, 7 %) get their nearest neighbour's depth; the nearest and
        the farthest hundredth are cut off.

        Raises:
            InputError, DigestMismatch: see `PackageFile.read`.
        """
        if self.disparity is None:
            return None
        from scipy.ndimage import distance_transform_edt

        with np.load(io.BytesIO(self.disparity.read())) as stored:
            disparity = stored["arr_0"].astype(np.float64)
        known = np.isfinite(disparity)
        rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
        depth = 1 / (disparity[rows, columns] + _PRINCIPAL_POINT_OFFSET)
        near, far = np.quantile(depth[known], (0.01, 0.99))
        scaled: npt.NDArray[np.float32] = np.clip((depth - near) / (far - near), 0, 1).astype(np.float32)
        return scaled


def _skimage(name: str, digest: str) -> PackageFile:
    return PackageFile("skimage", f"data/{name}", digest)


def _sklearn(name: str, digest: str) -> PackageFile:
    return PackageFile("sklearn", f"datasets/images/{name}", digest)


_CC0 = "CC0-1.0"
_CC_BY_2 = "CC-BY-2.0"

PHOTOS = (
    Photo(
        "flower",
        "train",
        _sklearn("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"),
        _CC_BY_2,
        "vultilion, flickr photo 6056698931 (scikit-learn's note names danielbuechele beside that page)",
    ),
    Photo(
        "motorcycle",
        "train",
        _skimage("motorcycle_left.png", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
        'permission "to use and publish all images and disparity maps" (Middlebury stereo data page)',
        "Nesic, Westling, Wang, Kitajima, Krathwohl, Scharstein, Middlebury College; cite D. Scharstein, "
        "H. Hirschmüller, Y. Kitajima, G. Krathwohl, N. Nesic, X. Wang and P. Westling, GCPR 2014",
        _skimage("motorcycle_disp.npz", "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7"),
    ),
    Photo(
        "brick wall",
        "train",
        _skimage("brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf"),
        _CC0,
        "CC0Textures, Bricks25; made grey by scikit-image",
    ),
    Photo(
        "grass",
        "train",
        _skimage("grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89"),
        _CC0,
        "linolafett, Grass 01; made grey by scikit-image",
    ),
    Photo(
        "gravel",
        "train",
        _skimage("gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12"),
        _CC0,
        "CC0Textures, Gravel04; made grey by scikit-image",
    ),
    Photo(
        "cat",
        "search",
        _skimage("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
        _CC0,
        "Stefan van der Walt",
    ),
    Photo(
        "coffee",
        "holdout",
        _skimage("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        _CC0,
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    Photo(
        "pavilion",
        "holdout",
        _sklearn("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
        _CC_BY_2,
        "danielbuechele, flickr photo 6061409035",
    ),
)

# What else those packages, and matplotlib, ship, and why it is not used.
LEFT_OUT = {
    "astronaut, camera (scikit-image), grace_hopper (matplotlib)": "show a person",
    "retina, ihc, cell, microaneurysms (scikit-image)": "medical or microscopic pictures, mostly of people",
    "rocket (scikit-image)": "called public domain in the package, CC-BY-NC-2.0 on the owner's page",
    "moon, page (scikit-image)": "no licence or source is given",
    "coins (scikit-image)": '"no known copyright restrictions" is not a licence',
    "hubble_deep_field, clock_motion (scikit-image)": "free, but a black sky and a blur",
}


def of_role(role: PhotoRole) -> list[Photo]:
    """The photos of a role, in the order of `PHOTOS`."""
    return [photo for photo in PHOTOS if photo.role == role]


def check_roles(photos: Iterable[Photo]) -> None:
    """Check that no photo, and no scene, is named twice: then none has two roles.

    Raises:
        SetError: one is; the message holds its scene and roles.
    """
    first: dict[str, Photo] = {}
    for photo in photos:
        for key in (photo.scene, photo.file.sha256):
            if (other := first.setdefault(key, photo)) is not photo:
                raise SetError(
                    f"the photo {photo.scene!r} is there twice, as {other.role} and as {photo.role} photo"
                )


def card() -> str:
    """The data card: which photos, whose, under which licence, and what was left out."""
    rows = "\n".join(
        f"| {photo.scene} | {photo.role} | {photo.file.package}/{photo.file.path} | {photo.licence} "
        f"| {photo.attribution} |"
        for photo in PHOTOS
    )
    others = "\n".join(f"- {names}: {reason}" for names, reason in LEFT_OUT.items())
    return f"""# Data card: photos for image restoration

Square crops of {len(PHOTOS)} photos that ship inside scikit-image and scikit-learn, each crop clean and
degraded. No person is depicted: `personal: false`. No photo has two roles.

| scene | role | file | licence | attribution |
|---|---|---|---|---|
{rows}

Changes made: cut into crops; noise, rain or haze added (`data/degradations.py`); saved as PNG.

Left out on purpose:

{others}

Limits: few photos, so few independent scenes: what holds on two holdout photos is said of these two.
Rain and haze are synthetic; depth is measured for the motorcycle and made up for all others.
"""
