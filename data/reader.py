"""Images of a set as arrays, one at a time and checked, so memory does not grow with the set."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from data.pictures import decode_image
from data.shards import ShardReader
from data.views import render_view

if TYPE_CHECKING:
    import pandas as pd


def iter_images(folder: Path, items: "pd.DataFrame", *, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each item's view as pixels, in the frame's row order.

    An image that is not square is cut to its central square, as CLIP's evaluation transform does,
    and resized bicubically (with antialiasing).  Rows of one image that follow each other, as
    `data.layout.read_items` gives them, decode it once.

    Args:
        folder: the set's folder.
        items: all or some rows of its items, in any order.
        size: side of the square, in pixels.

    Yields:
        (row position from 0, uint8 array of shape (size, size, 3), RGB).

    Raises:
        SetError: a shard is missing or cut short, or an image cannot be decoded (names the item id).
        DigestMismatch: an image's bytes are not the promised ones (names the item id).
    """
    columns = (items[name] for name in ("id", "shard", "member", "sha256", "view"))
    decoded: tuple[str, Image.Image] | None = None
    with ShardReader(folder) as shards:
        for position, (item, shard, member, sha256, view) in enumerate(zip(*columns, strict=True)):
            if decoded is None or decoded[0] != sha256:
                payload = shards.read(shard, member, sha256, item)
                decoded = (sha256, decode_image(payload, f"item {item}"))
            picture = render_view(decoded[1], int(view), sha256)
            square = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
            yield position, np.asarray(square)


def load_images(folder: Path, items: "pd.DataFrame", size: int) -> np.ndarray:
    """All images of the frame as one uint8 array of shape (n, size, size, 3), in row order.

    Raises:
        SetError, DigestMismatch: see `iter_images`.
    """
    images = np.empty((len(items), size, size, 3), dtype=np.uint8)
    for position, image in iter_images(folder, items, size=size):
        images[position] = image
    return images
