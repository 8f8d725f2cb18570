"""The set format: a folder with `set.json`, `items.parquet` and `images-*.tar`.

One row of `items.parquet` is one *item*, an (image, caption) pair; several items may share an
image (other captions, other views), which is then stored once.  Names of concepts and people
live in captions only: every other column holds opaque ids and digests, so it may leave the run
folder.  Equal items give equal bytes of every file, whatever order they come in.

Writing is in `data.writing`; the tars are in `data.shards`.
"""

import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.canonical import from_plain
from contracts.errors import InputError, SetError
from contracts.values import Role

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
SUMMARY_FILE = "set.json"
ITEMS_FILE = "items.parquet"

# Column of items.parquet -> Arrow type, in file order.
COLUMNS = {
    "id": "string",  # "i-" + first 16 hex digits of the item digest
    "object": "string",  # opaque concept id "c-" + 8 hex, "" if unlabelled
    "style": "string",  # opaque style id "s-" + 8 hex, "" if unlabelled
    "caption": "string",  # personal: never in messages, logs or results
    "member": "string",  # name in the tar, "<first 16 hex of sha256>.<png|jpg|webp>"
    "shard": "string",  # "images-00000.tar"
    "sha256": "string",  # of the image bytes as stored
    "source": "string",  # first 16 hex of the base drawing's sha256: the cluster for statistics
    "view": "int32",  # 0 = as drawn; k > 0 = random view k, made at read time (`data.views`)
}

ITEM_ID = re.compile(r"i-[0-9a-f]{16}")
OBJECT_ID = re.compile(r"c-[0-9a-f]{8}")
STYLE_ID = re.compile(r"s-[0-9a-f]{8}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SOURCE_ID = re.compile(r"[0-9a-f]{16}")
SHARD_NAME = re.compile(r"images-[0-9]{5}\.tar")
MEMBER_NAME = re.compile(r"[0-9a-f]{16}\.(?:png|jpg|webp)")


@dataclass(frozen=True)
class SetSummary:
    """What `set.json` says of a set; `n_drawings` counts distinct sources (clusters)."""

    role: Role
    personal: bool
    n_items: int
    n_drawings: int
    licence: str


def concept_id(name: str) -> str:
    """The opaque id of an object concept; case and outer white space do not matter."""
    return "c-" + _name_digest("object", name)


def style_id(name: str) -> str:
    """The opaque id of a style; case and outer white space do not matter."""
    return "s-" + _name_digest("style", name)


def _name_digest(axis: str, name: str) -> str:
    return hashlib.sha256(f"{axis}:{name.strip().casefold()}".encode()).hexdigest()[:8]


def item_digest(sha256: str, view: int, caption: str) -> str:
    """Hex sha256 that identifies one item by what decides it: image bytes, view, caption."""
    return hashlib.sha256(f"{sha256}:{view}:{caption}".encode()).hexdigest()


def item_id(digest: str) -> str:
    """The short opaque id of an item, safe in messages."""
    return f"i-{digest[:16]}"


def item_digests(items: "pd.DataFrame") -> list[str]:
    """The item digest of every row, in row order."""
    rows = zip(items["sha256"], items["view"], items["caption"], strict=True)
    return [item_digest(sha256, view, caption) for sha256, view, caption in rows]


def items_sha256(items: "pd.DataFrame") -> str:
    """One digest of a whole set: sha256 over the sorted item digests, joined by newlines."""
    return hashlib.sha256("\n".join(sorted(item_digests(items))).encode()).hexdigest()


def read_summary(folder: Path) -> SetSummary:
    """Read `set.json` of a set folder.

    Raises:
        SetError: the file is missing, or see `parse_summary`.
    """
    where = f"{folder.name}/{SUMMARY_FILE}"
    try:
        return parse_summary((folder / SUMMARY_FILE).read_bytes(), where)
    except OSError:
        raise SetError(f"{where} is missing: {folder} is no set") from None


def parse_summary(content: bytes, where: str) -> SetSummary:
    """The summary in the bytes of a `set.json`; `where` begins every message.

    Raises:
        SetError: no JSON, another schema version, or a field is wrong.
    """
    try:
        plain = json.loads(content)
    except ValueError:
        raise SetError(f"{where} is not valid JSON") from None
    version = plain.pop("schema", None) if isinstance(plain, dict) else None
    if version != SCHEMA_VERSION:
        raise SetError(f"{where} has schema {version!r}, this version reads {SCHEMA_VERSION}")
    try:
        return from_plain(SetSummary, plain)
    except InputError as error:
        raise SetError(f"{where}: {error}") from None


def read_items(folder: Path) -> "pd.DataFrame":
    """Read `items.parquet` of a set folder.

    Raises:
        SetError: the file is missing, or see `parse_items`.
    """
    where = f"{folder.name}/{ITEMS_FILE}"
    try:
        return parse_items((folder / ITEMS_FILE).read_bytes(), where)
    except OSError:
        raise SetError(f"{where} is missing") from None


def parse_items(content: bytes, where: str) -> "pd.DataFrame":
    """The items in the bytes of an `items.parquet`: one row each, columns as in `COLUMNS`.

    The format is checked here (columns, types, no missing value); what the values say is
    checked by `data.validate`, and the images by `data.reader` as they are read.

    Raises:
        SetError: no parquet, a column is missing, unknown or of the wrong type, or a value is
            missing; `where` begins the message.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()
    except (pa.ArrowException, OSError):
        raise SetError(f"{where} is not a readable parquet file") from None
    # pandas writes text as large_string: the same values with wider offsets.
    found = {field.name: str(field.type).removeprefix("large_") for field in table.schema}
    for name, kind in COLUMNS.items():
        if name not in found:
            raise SetError(f"{where}: column {name} is missing")
        if found[name] != kind:
            raise SetError(f"{where}: column {name} is of type {found[name]}, expected {kind}")
        if missing := table[name].null_count:
            raise SetError(f"{where}: {missing} of {table.num_rows} rows have no {name}")
    if surplus := len(table.schema) - len(COLUMNS):
        raise SetError(f"{where}: {surplus} columns are not part of the set format")
    items: pd.DataFrame = table.select(list(COLUMNS)).to_pandas()
    return items
