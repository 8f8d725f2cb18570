"""Streams of webdataset shards: every pair once, in seeded batches, read only where it is asked for."""

import io
import json
import tarfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contracts.errors import InputError, SetError
from data.streams import PairStream


def write(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path, picture) -> tuple[Path, ...]:
    """Three shards of 10, 7 and 3 pairs; pair n shows picture n and is called "Ada n"."""
    found = []
    for number, (first, end) in enumerate(pairwise((0, 10, 17, 20))):
        members = {}
        for n in range(first, end):
            members |= {f"some/{n:04}.png": picture(n), f"some/{n:04}.txt": f"Ada {n}\n".encode()}
        found.append(write(tmp_path / f"pairs-{number}.tar", members))
    return tuple(found)


def captions(stream: PairStream) -> list[str]:
    return [caption for batch in stream for caption in batch.read(slice(None))[1]]


def test_every_pair_comes_once_in_batches_of_the_size_asked_for(shards) -> None:
    stream = PairStream(shards, size=8, batch=6, buffer=4)
    assert [len(batch) for batch in stream] == [6, 6, 6, 2]
    assert sorted(captions(stream)) == sorted(f"Ada {n}" for n in range(20))


def test_the_seed_decides_the_order_and_the_buffer_how_far_it_is_shuffled(shards) -> None:
    def order(seed: int, buffer: int) -> list[int]:
        stream = PairStream(shards, size=8, batch=6, seed=seed, buffer=buffer)
        return [int(caption.split()[1]) for caption in captions(stream)]

    assert order(0, 4) == order(0, 4) != order(1, 4)
    # With room for one pair nothing is shuffled but the shards.
    unshuffled = [order(seed, 1) for seed in range(5)]
    assert all(sum(b - a != 1 for a, b in pairwise(found)) <= 2 for found in unshuffled)
    assert len({found[0] for found in unshuffled}) > 1, "shards come in drawn order"


def test_pictures_belong_to_their_captions(shards, picture) -> None:
    for batch in PairStream(shards, size=12, batch=7, seed=5):
        images, texts = batch.read(slice(None))
        assert images.dtype == np.uint8
        assert images.shape == (len(batch), 12, 12, 3)
        for image, text in zip(images, texts, strict=True):
            drawn = Image.open(io.BytesIO(picture(int(text.split()[1])))).convert("RGB")
            np.testing.assert_array_equal(image, np.asarray(drawn))


def test_a_part_of_a_batch_is_read_without_the_rest(shards, picture) -> None:
    # Another process's share must cost this one nothing, not even where it cannot be decoded.
    whole = next(iter(PairStream(shards[:1], size=8, batch=10)))
    images, texts = whole.read(slice(None))
    part, own = whole.read(slice(3, 6))
    np.testing.assert_array_equal(part, images[3:6])
    assert own == texts[3:6]
    with shards[0].open("r+b") as file:
        file.seek(whole.places[0].image.offset)
        file.write(b"no picture")
    np.testing.assert_array_equal(whole.read(slice(3, 6))[0], images[3:6])
    with pytest.raises(SetError, match=rf"pairs-0\.tar, pair {whole.places[0].number}: not a PNG"):
        whole.read(slice(0, 1))


def test_captions_may_be_json(tmp_path: Path, picture) -> None:
    members = {"a.png": picture(0), "a.json": json.dumps({"caption": "one", "title": "two"}).encode()}
    shard = write(tmp_path / "json.tar", members)
    assert captions(PairStream((shard,), size=8, batch=2)) == ["one"]
    assert captions(PairStream((shard,), size=8, batch=2, caption_key="title")) == ["two"]
    with pytest.raises(SetError, match=r"json\.tar, pair 1: there is no caption"):
        captions(PairStream((shard,), size=8, batch=2, caption_key="nothing"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"ada.png": b"", "bob.txt": b"Bob"}, "odd.tar, pair 1: not one picture with"),
        ({"ada.txt": b"Ada"}, "odd.tar, pair 1: not one picture with"),
        ({"ada.png": b"", "ada.jpg": b"", "ada.txt": b"Ada"}, "odd.tar, pair 1: not one picture with"),
        ({"ada.PNG": b"", "ada.png": b"", "ada.txt": b"Ada"}, "member 2 of odd.tar repeats a name"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, members, message: str) -> None:
    shard = write(tmp_path / "odd.tar", members)
    with pytest.raises(SetError, match=message) as caught:
        list(PairStream((shard,), size=8, batch=2))
    assert "ada" not in str(caught.value).lower(), "member names may be names of people"


def test_bad_captions_are_refused(tmp_path: Path, picture) -> None:
    for name, content in (("a.txt", b"\xff\xfe\xff"), ("a.json", b"[1]"), ("a.json", b"{"), ("a.txt", b"  ")):
        shard = write(tmp_path / "odd.tar", {"a.png": picture(0), name: content})
        with pytest.raises(SetError, match=r"odd\.tar, pair 1: (the caption|there is no caption)"):
            captions(PairStream((shard,), size=8, batch=2))


def test_damaged_shards_are_refused(tmp_path: Path, shards) -> None:
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shards[0].read_bytes()[:3000])
    link = tmp_path / "link.tar"
    with tarfile.open(link, "w") as tar:
        header = tarfile.TarInfo("a.png")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(header)
    for shard, message in ((cut, "cut short"), (tmp_path / "gone.tar", "missing"), (link, "link")):
        with pytest.raises(SetError, match=message):
            list(PairStream((shard,), size=8, batch=2))


def test_bad_options_are_refused(shards) -> None:
    with pytest.raises(InputError, match="at least one shard"):
        PairStream((), size=8, batch=2)
    for option in ("size", "batch", "buffer"):
        with pytest.raises(InputError, match=f"{option} must be at least 1, got 0"):
            PairStream(shards, **{"size": 8, "batch": 2, option: 0})
