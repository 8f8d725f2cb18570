"""Pairs of a sharded set as a stream of shuffled batches; memory does not grow with the set.

Shards are webdataset tars, as `slugline sets add` reads one: consecutive members with one key make a
pair, `key.png` with `key.txt` or `key.json`.  They lie on a disk, so a stream walks over headers alone
and shuffles *places*, not pictures: a pair is a few numbers until somebody reads it, and a buffer
of 10,000 of them is a few megabytes whatever the pictures' size.  Over several processes each one walks
the same order and reads only its own share of every batch, so the batches, and with them the
result, do not depend on how many there are.

Messages name pairs by their number in the shard, never by member name or caption.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from contracts.errors import InputError, SetError
from data.pictures import decode_image
from data.sources import IMAGE_SUFFIXES
from data.tar_samples import samples
from data.views import render_view


class Extent(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


class Place(NamedTuple):
    """Where a pair lies; places sort into reading order.  `number` counts a shard's pairs from 1."""

    shard: int
    number: int
    image: Extent
    caption: Extent
    in_json: bool


@dataclass(frozen=True)
class PairStream:
    """A set's pairs in seeded order, in batches; every iteration gives the same ones.

    Shards come in drawn order, and pairs leave a buffer that is filled from them at random places.

    Attributes:
        shards: the tars, in a fixed order.
        size: side of the square that pictures are cut and resized to, as `data.reader` does, in pixels.
        batch: pairs of a batch; the last one may hold fewer.
        seed: of both draws.
        buffer: pairs that wait; neighbours in a shard end up about so far apart.
        caption_key: where a pair has a JSON file and no text file, the key of its caption.

    Raises:
        InputError: no shards, or a number is below 1.
    """

    shards: tuple[Path, ...]
    size: int
    batch: int
    seed: int = 0
    buffer: int = 10_000
    caption_key: str = "caption"

    def __post_init__(self) -> None:
        if not self.shards:
            raise InputError("a stream needs at least one shard")
        for name in ("size", "batch", "buffer"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __iter__(self) -> Iterator["StreamedBatch"]:
        """Batches whose pairs are still to be read.

        Raises:
            SetError: a shard is missing or cut short, or holds something else than pairs.
        """
        rng = np.random.default_rng(self.seed)
        order = rng.permutation(len(self.shards)).tolist()
        places = (place for shard in order for place in _pairs(self.shards[shard], shard))
        shuffled = _shuffled(places, self.buffer, rng)
        while batch := tuple(islice(shuffled, self.batch)):
            yield StreamedBatch(self, batch)


@dataclass(frozen=True)
class StreamedBatch:
    """Some pairs of a stream, each known by its place."""

    stream: PairStream
    places: tuple[Place, ...]

    def __len__(self) -> int:
        """How many pairs."""
        return len(self.places)

    def read(self, part: slice) -> tuple[NDArray[np.uint8], list[str]]:
        """Pictures uint8 (n, size, size, 3), RGB on white ground, and n captions of a part of the batch.

        Raises:
            SetError: a picture cannot be decoded, or there is no caption.
        """
        places, size = self.places[part], self.stream.size
        images = np.empty((len(places), size, size, 3), dtype=np.uint8)
        captions = [""] * len(places)
        with ExitStack() as stack:
            files: dict[int, BinaryIO] = {}
            for position in sorted(range(len(places)), key=places.__getitem__):
                place = places[position]
                shard = self.stream.shards[place.shard]
                if place.shard not in files:
                    files[place.shard] = stack.enter_context(shard.open("rb"))
                name = f"{shard.name}, pair {place.number}"
                picture = decode_image(_bytes(files[place.shard], place.image), name)
                square = ImageOps.fit(render_view(picture, 0, ""), (size, size), Image.Resampling.BICUBIC)
                images[position] = np.asarray(square)
                captions[position] = self._caption(_bytes(files[place.shard], place.caption), place, name)
        return images, captions

    def _caption(self, content: bytes, place: Place, name: str) -> str:
        try:
            text = content.decode("utf-8-sig")
            caption = json.loads(text).get(self.stream.caption_key) if place.in_json else text
        except (ValueError, AttributeError):
            raise SetError(f"{name}: the caption is not UTF-8 text, or its JSON is no object") from None
        if not isinstance(caption, str) or not caption.strip():
            raise SetError(f"{name}: there is no caption")
        return caption.strip()


def _pairs(shard: Path, index: int) -> Iterator[Place]:
    try:
        with tarfile.open(shard, "r:") as tar:
            for number, sample in enumerate(samples(tar, _extent, shard.name), start=1):
                images = [extent for suffix, extent in sample.items() if suffix in IMAGE_SUFFIXES]
                caption = sample.get(".txt", sample.get(".json"))
                if len(images) != 1 or caption is None:
                    raise SetError(f"{shard.name}, pair {number}: not one picture with a .txt or .json")
                yield Place(index, number, images[0], caption, ".txt" not in sample)
    except (tarfile.TarError, OSError):
        raise SetError(f"{shard.name} is missing, cut short or no plain tar") from None


def _extent(header: tarfile.TarInfo) -> Extent:
    return Extent(header.offset_data, header.size)


def _bytes(file: BinaryIO, extent: Extent) -> bytes:
    file.seek(extent.offset)
    return file.read(extent.size)


def _shuffled(places: Iterable[Place], buffer: int, rng: np.random.Generator) -> Iterator[Place]:
    """Every place once: each new one replaces a drawn one that waits; the last ones are permuted."""
    waiting: list[Place] = []
    for place in places:
        if len(waiting) < buffer:
            waiting.append(place)
            continue
        drawn = int(rng.integers(buffer))
        waiting[drawn], place = place, waiting[drawn]
        yield place
    yield from (waiting[i] for i in rng.permutation(len(waiting)))
