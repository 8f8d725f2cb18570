import hashlib
import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import SetError
from data.layout import (
    COLUMNS,
    concept_id,
    item_digest,
    item_id,
    items_sha256,
    read_items,
    read_summary,
    style_id,
)
from data.writing import write_set


@pytest.fixture
def folder(tmp_path, some_items) -> Path:
    write_set(tmp_path / "forget", "forget", some_items(3), personal=True, licence="CC0-1.0")
    return tmp_path / "forget"


def rewrite(folder: Path, table: pa.Table) -> None:
    pq.write_table(table, folder / "items.parquet")


def test_names_become_ids_that_ignore_case_and_outer_space() -> None:
    assert concept_id(" Hot Beverage ") == concept_id("hot beverage")
    assert concept_id("hot beverage") == "c-" + hashlib.sha256(b"object:hot beverage").hexdigest()[:8]
    assert style_id("noto")[2:] != concept_id("noto")[2:]


def test_item_digest_depends_on_image_view_and_caption() -> None:
    digests = {
        item_digest("ab" * 32, 0, "a cup"),
        item_digest("cd" * 32, 0, "a cup"),
        item_digest("ab" * 32, 1, "a cup"),
        item_digest("ab" * 32, 0, "a mug"),
    }
    assert len(digests) == 4


def test_items_come_back_as_written(folder, some_items) -> None:
    items = read_items(folder)
    assert list(items.columns) == list(COLUMNS)
    assert set(items["caption"]) == {item.caption for item in some_items(3)}
    assert str(items["view"].dtype) == "int32"
    expected = [
        item_id(item_digest(s, v, c))
        for s, v, c in zip(items.sha256, items["view"], items.caption, strict=True)
    ]
    assert list(items["id"]) == expected


def test_items_sha256_ignores_order_and_notices_any_item(folder) -> None:
    items = read_items(folder)
    assert items_sha256(items) == items_sha256(items[::-1])
    assert items_sha256(items) != items_sha256(items[1:])
    assert items_sha256(items) != items_sha256(items.assign(caption=["x", *items["caption"][1:]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns("source"), "column source is missing"),
        (lambda t: t.append_column("person", pa.array(["Ada"] * 3)), "1 columns are not part"),
        (
            lambda t: t.set_column(8, "view", t["view"].cast("int64")),
            "column view is of type int64, expected int32",
        ),
        (lambda t: t.set_column(3, "caption", pa.array(["a", None, "b"])), "1 of 3 rows have no caption"),
    ],
)
def test_a_wrong_table_is_refused_by_what_is_wrong(folder, change, message) -> None:
    rewrite(folder, change(pq.read_table(folder / "items.parquet")))
    with pytest.raises(SetError, match=message) as caught:
        read_items(folder)
    assert "Ada" not in str(caught.value)


def test_a_nan_caption_written_by_pandas_is_refused(folder) -> None:
    items = read_items(folder)
    items["caption"] = pd.Series(["a", float("nan"), "b"], dtype="str")
    items.to_parquet(folder / "items.parquet")
    with pytest.raises(SetError, match="1 of 3 rows have no caption"):
        read_items(folder)


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1"])
def test_no_parquet_is_refused(folder, content) -> None:
    (folder / "items.parquet").write_bytes(content)
    with pytest.raises(SetError, match="not a readable parquet"):
        read_items(folder)


def test_an_empty_folder_is_no_set(tmp_path) -> None:
    with pytest.raises(SetError, match=r"set\.json is missing"):
        read_summary(tmp_path)
    with pytest.raises(SetError, match=r"items\.parquet is missing"):
        read_items(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"role": "victim"}, "role"),
        ({"personal": "yes"}, "personal"),
        ({"owner": "x"}, "unknown field"),
    ],
)
def test_a_wrong_summary_is_refused(folder, change, message) -> None:
    plain = json.loads((folder / "set.json").read_text()) | change
    (folder / "set.json").write_text(json.dumps(plain))
    with pytest.raises(SetError, match=message):
        read_summary(folder)


@pytest.mark.parametrize("content", ["{", "[]", "\xff"])
def test_a_summary_that_is_no_object_is_refused(folder, content) -> None:
    (folder / "set.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SetError):
        read_summary(folder)
