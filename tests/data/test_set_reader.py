import hashlib
import io
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contracts.errors import DigestMismatch, SetError
from data.layout import read_items
from data.reader import iter_images, load_images
from data.shards import verify_shards
from data.views import render_view
from data.writing import NewItem, write_set


@pytest.fixture
def folder(tmp_path, some_items) -> Path:
    write_set(
        tmp_path / "forget", "forget", some_items(5, views=(0, 3)), personal=True, licence="", shard_size=2
    )
    return tmp_path / "forget"


def repack(shard: Path, change) -> None:
    """Rewrite a shard with `change(headers and contents)`."""
    with tarfile.open(shard) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for header, content in change(members):
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def header(name: str, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def test_pixels_are_the_views_of_the_stored_images(folder, some_items) -> None:
    items = read_items(folder)
    images = load_images(folder, items, 12)
    payloads = {hashlib.sha256(item.image).hexdigest(): item.image for item in some_items(5)}
    assert images.shape == (10, 12, 12, 3)
    assert images.dtype == np.uint8
    for row, shown in zip(items.itertuples(), images, strict=True):
        image = Image.open(io.BytesIO(payloads[row.sha256]))
        assert np.array_equal(shown, np.asarray(render_view(image, row.view, row.sha256)))


def test_any_rows_in_any_order(folder) -> None:
    items = read_items(folder)
    images = load_images(folder, items, 8)
    some = [7, 0, 4, 9, 1]
    assert np.array_equal(load_images(folder, items.iloc[some], 8), images[some])
    assert [position for position, _ in iter_images(folder, items.iloc[some], size=8)] == [0, 1, 2, 3, 4]
    assert load_images(folder, items.iloc[:0], 8).shape == (0, 8, 8, 3)


def test_oblong_images_are_cut_to_their_centre(tmp_path) -> None:
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    write_set(tmp_path / "a", "forget", [NewItem(stream.getvalue(), "x")], personal=False, licence="")
    assert (load_images(tmp_path / "a", read_items(tmp_path / "a"), 10) == 255).all()


def test_memory_does_not_grow_with_the_set(tmp_path, picture) -> None:
    def peak(count: int) -> int:
        folder = tmp_path / str(count)
        items = (NewItem(picture(n, side=40), f"{n}") for n in range(count))
        write_set(folder, "retain", items, personal=False, licence="", shard_size=10)
        table = read_items(folder)
        tracemalloc.start()
        for _ in iter_images(folder, table, size=40):
            pass
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)  # lazy imports
    assert peak(80) < 1.5 * peak(20) + 100_000  # 60 images of 4800 bytes more would be 288 000


def test_swapped_bytes_are_a_digest_mismatch_that_names_the_item(folder, picture) -> None:
    repack(folder / "images-00000.tar", lambda ms: [(ms[0][0], picture(77)), *ms[1:]])
    items = read_items(folder)
    with pytest.raises(DigestMismatch, match=f"item {items['id'].iloc[0]}: the stored image"):
        load_images(folder, items, 8)
    with pytest.raises(DigestMismatch, match="item i-"):
        verify_shards(folder, items)


def test_an_undecodable_image_names_the_item(tmp_path, picture) -> None:
    cut = picture(1, side=64)[:2000]
    write_set(tmp_path / "a", "forget", [NewItem(cut, "Ada")], personal=True, licence="")
    items = read_items(tmp_path / "a")
    with pytest.raises(SetError, match=f"item {items['id'].iloc[0]}: the image is damaged"):
        load_images(tmp_path / "a", items, 8)


@pytest.mark.parametrize("keep", [100, 512 + 300])
def test_a_tar_cut_short_is_refused(folder, keep) -> None:
    shard = folder / "images-00000.tar"
    shard.write_bytes(shard.read_bytes()[:keep])
    with pytest.raises(SetError, match=r"images-00000\.tar is cut short or no tar"):
        load_images(folder, read_items(folder), 8)


def test_a_tar_cut_between_members_is_missed_by_name(folder) -> None:
    repack(folder / "images-00000.tar", lambda ms: ms[:1])
    with pytest.raises(SetError, match=r"item i-\w+: its image is not in the shard"):
        load_images(folder, read_items(folder), 8)


@pytest.mark.parametrize(
    "stranger",
    [
        header("../../0123456789abcdef.png"),
        header("/0123456789abcdef.png"),
        header("0123456789abcdef.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        header("ada.png"),
    ],
)
def test_unsafe_members_are_refused_and_not_named(folder, stranger) -> None:
    repack(folder / "images-00000.tar", lambda ms: [*ms, (stranger, b"")])
    with pytest.raises(SetError, match="member 3 is not a plain file with an opaque image name") as caught:
        load_images(folder, read_items(folder), 8)
    assert "ada" not in str(caught.value)


def test_a_repeated_member_is_refused(folder) -> None:
    # Else the reader and another tar program could see different images under one name.
    repack(folder / "images-00000.tar", lambda ms: [*ms, ms[0]])
    with pytest.raises(SetError, match="member 3 repeats a name"):
        load_images(folder, read_items(folder), 8)


@pytest.mark.parametrize("shard", ["../forget/images-00000.tar", "/etc/passwd"])
def test_a_shard_name_is_not_a_path(folder, shard) -> None:
    items = read_items(folder).assign(shard=shard)
    with pytest.raises(SetError, match="not of the form"):
        load_images(folder, items, 8)


def test_missing_and_surplus_shards_and_members_are_noticed(folder) -> None:
    items = read_items(folder)
    verify_shards(folder, items)
    with pytest.raises(SetError, match="1 members belong to no item"):
        verify_shards(folder, items[items["member"] != items["member"].iloc[0]])
    with pytest.raises(SetError, match="1 shards hold no image"):
        verify_shards(folder, items[items["shard"] != "images-00000.tar"])
    (folder / "images-00001.tar").unlink()
    with pytest.raises(SetError, match=r"images-00001\.tar is missing"):
        verify_shards(folder, items)
