import hashlib
import json
import os
import tarfile

import pytest

from contracts.errors import InputError, SetError
from data.layout import read_items, read_summary, style_id
from data.writing import NewItem, write_set


def write(folder, items, **options):
    return write_set(folder, "forget", items, personal=True, licence="CC0-1.0", **options)


def contents(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_equal_items_give_equal_bytes_in_any_order(tmp_path, some_items) -> None:
    write(tmp_path / "a", some_items(5), shard_size=2)
    write(tmp_path / "b", reversed(some_items(5)), shard_size=2)
    write(tmp_path / "c", some_items(4), shard_size=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")
    assert set(contents(tmp_path / "a")) == {
        "set.json",
        "items.parquet",
        "images-00000.tar",
        "images-00001.tar",
        "images-00002.tar",
    }


def test_tar_headers_carry_nothing_of_this_machine(tmp_path, some_items) -> None:
    write(tmp_path / "a", some_items(2))
    with tarfile.open(tmp_path / "a" / "images-00000.tar") as tar:
        names = tar.getnames()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}
    assert names == sorted(names)


def test_views_and_captions_of_one_image_share_its_bytes(tmp_path, picture) -> None:
    items = [NewItem(picture(1), "a cup", views=(0, 1, 2)), NewItem(picture(1), "a mug")]
    summary = write(tmp_path / "a", items)
    table = read_items(tmp_path / "a")
    assert (summary.n_items, summary.n_drawings) == (4, 1)
    assert table["member"].nunique() == 1
    assert sorted(table["view"]) == [0, 0, 1, 2]
    with tarfile.open(tmp_path / "a" / "images-00000.tar") as tar:
        assert len(tar.getnames()) == 1


def test_summary_is_what_stands_in_the_folder(tmp_path, some_items) -> None:
    summary = write(tmp_path / "a", some_items(3))
    assert read_summary(tmp_path / "a") == summary
    plain = json.loads((tmp_path / "a" / "set.json").read_text())
    assert plain == {
        "schema": 1,
        "role": "forget",
        "personal": True,
        "n_items": 3,
        "n_drawings": 3,
        "licence": "CC0-1.0",
    }


def test_drawings_are_counted_by_source(tmp_path, some_items) -> None:
    assert write(tmp_path / "a", some_items(3, source="0123456789abcdef")).n_drawings == 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_bytes_are_kept_and_the_suffix_follows_the_format(tmp_path, picture, kind) -> None:
    payload = picture(1, kind=kind)
    write(tmp_path / "a", [NewItem(payload, "a cup")])
    member = read_items(tmp_path / "a")["member"].iloc[0]
    assert member.endswith({"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}[kind])
    with tarfile.open(tmp_path / "a" / "images-00000.tar") as tar:
        assert tar.extractfile(member).read() == payload


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"caption": " \n"}, "row 3: the caption is blank"),
        ({"object": "Ada Lovelace"}, "row 3: the object label is no opaque"),
        ({"style": "c-00000000"}, "row 3: the style label is no opaque"),
        ({"source": "ada.jpg"}, "row 3: the source is not"),
        ({"views": ()}, "row 3: views"),
        ({"views": (-1,)}, "row 3: views"),
        ({"image": b""}, "row 3: the image is empty"),
        ({"image": b"Ada"}, "row 3: not a PNG"),
        ({"views": (1, 1)}, "row 3: item i-[0-9a-f]{16} is already"),
    ],
)
def test_an_unusable_item_is_named_by_number_and_nothing_is_left(
    tmp_path, picture, some_items, fields, message
) -> None:
    bad = NewItem(**({"image": picture(99), "caption": "Ada", "style": style_id("x")} | fields))
    with pytest.raises(SetError, match=message) as caught:
        write(tmp_path / "a", [*some_items(2), bad])
    assert "Ada" not in str(caught.value)
    assert "ada" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_repeated_item_is_refused(tmp_path, some_items) -> None:
    with pytest.raises(SetError, match=r"row 3: item i-\w+ is already in the set"):
        write(tmp_path / "a", [*some_items(2), some_items(1)[0]])


def test_one_image_cannot_have_two_sources(tmp_path, picture) -> None:
    # Else the same picture would count as two clusters.
    items = [NewItem(picture(1), "a", source="0" * 16), NewItem(picture(1), "b", source="1" * 16)]
    with pytest.raises(SetError, match="row 2: its image is already in the set under another source"):
        write(tmp_path / "a", items)


def test_an_empty_set_is_refused(tmp_path) -> None:
    with pytest.raises(SetError, match="at least one item"):
        write(tmp_path / "a", [])
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_not_touched(tmp_path, some_items) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "keep").write_text("me")
    with pytest.raises(InputError, match="not an empty folder"):
        write(tmp_path / "a", some_items(1))
    assert os.listdir(tmp_path / "a") == ["keep"]


def test_what_a_killed_run_left_is_replaced(tmp_path, some_items) -> None:
    (tmp_path / ".a.partial" / "spool").mkdir(parents=True)
    (tmp_path / ".a.partial" / "spool" / "old.png").write_bytes(b"old")
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", some_items(1))
    assert os.listdir(tmp_path) == ["a"]
    assert len(os.listdir(tmp_path / "a")) == 3


def test_unknown_role_is_refused(tmp_path, some_items) -> None:
    with pytest.raises(InputError, match="unknown set role 'victim'"):
        write_set(tmp_path / "a", "victim", some_items(1), personal=True, licence="")
