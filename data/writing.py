"""Writing a set folder: whole or not at all, and the same bytes for the same items."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from contracts.errors import InputError, SetError
from contracts.values import ROLES, Role
from data.layout import (
    COLUMNS,
    ITEMS_FILE,
    OBJECT_ID,
    SCHEMA_VERSION,
    SOURCE_ID,
    STYLE_ID,
    SUMMARY_FILE,
    SetSummary,
    item_digest,
    item_id,
)
from data.pictures import image_suffix
from data.shards import write_shard


@dataclass(frozen=True)
class NewItem:
    """One image with one caption, on its way into a set.

    Attributes:
        image: the encoded bytes (PNG, JPEG or WebP), stored as they are.
        caption: the text that belongs to the image; not blank.
        object: opaque concept id (`data.layout.concept_id`), or "".
        style: opaque style id (`data.layout.style_id`), or "".
        views: one item is made per view; 0 is the image as drawn (`data.views`).
        source: first 16 hex digits of the base drawing's sha256; by default of the image's own.
    """

    image: bytes
    caption: str
    object: str = ""
    style: str = ""
    views: tuple[int, ...] = (0,)
    source: str = ""


def write_set(
    folder: Path,
    role: Role,
    items: Iterable[NewItem],
    *,
    personal: bool,
    licence: str,
    shard_size: int = 2000,
) -> SetSummary:
    """Write a set folder; `folder` must not exist yet, or be empty.

    Images wait in a sibling folder until they can be packed in order, so memory holds the rows
    and one image at a time.  The sibling is renamed at the end: a reader never sees half a set.
    What a killed run left behind is removed by the next one.

    Args:
        folder: where the set shall stand.
        role: what the set is for.
        items: consumed once; an image that comes several times is stored once.
        personal: whether images or captions are about people.
        licence: the images' licence, in words.
        shard_size: images per tar.

    Raises:
        InputError: unknown role, or the folder is not empty.
        SetError: no items, or an item is unusable; the message gives its number, from 1.
    """
    if role not in ROLES:
        raise InputError(f"unknown set role {role!r}; roles are {', '.join(ROLES)}")
    if shard_size < 1:
        raise InputError(f"a shard holds at least one image, got shard_size={shard_size}")
    with staged(folder) as staging:
        spool = staging / "spool"
        spool.mkdir()
        rows = _spool_images(items, spool)
        if not rows:
            raise SetError("a set needs at least one item")
        _pack_shards(rows, spool, staging, shard_size)
        shutil.rmtree(spool)
        _write_items(rows, staging / ITEMS_FILE)
        summary = SetSummary(
            role=role,
            personal=personal,
            n_items=len(rows),
            n_drawings=len({row["source"] for row in rows}),
            licence=licence,
        )
        text = json.dumps({"schema": SCHEMA_VERSION, **asdict(summary)}, indent=2, ensure_ascii=False)
        (staging / SUMMARY_FILE).write_text(text + "\n", encoding="utf-8")
    return summary


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A fresh private sibling of `folder` that becomes `folder` at the end, or goes on an error.

    Raises:
        InputError: the folder exists and is not empty, or its parent cannot be written.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already and is not an empty folder")
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise InputError(f"cannot write next to {folder}: {error.strerror}") from None
    try:
        yield staging
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _spool_images(items: Iterable[NewItem], spool: Path) -> list[dict[str, str | int]]:
    """Write each distinct image to `spool/<member>` and return one row per item, in set order."""
    rows: dict[str, dict[str, str | int]] = {}
    seen: dict[str, tuple[str, str]] = {}  # member -> (sha256, source)
    for number, item in enumerate(items, start=1):
        sha256 = hashlib.sha256(item.image).hexdigest()
        source = item.source or sha256[:16]
        _check(item, source, number)
        member = sha256[:16] + image_suffix(item.image, f"row {number}")
        if member not in seen:
            (spool / member).write_bytes(item.image)
            seen[member] = (sha256, source)
        elif seen[member] != (sha256, source):
            # Either two sources for one image, or two images with the same first 64 bits of sha256.
            raise SetError(f"row {number}: its image is already in the set under another source")
        for view in item.views:
            digest = item_digest(sha256, view, item.caption)
            if digest in rows:
                raise SetError(f"row {number}: item {item_id(digest)} is already in the set")
            rows[digest] = {
                "id": item_id(digest),
                "object": item.object,
                "style": item.style,
                "caption": item.caption,
                "member": member,
                "sha256": sha256,
                "source": source,
                "view": view,
            }
    # Items of one image stand together, so a reader decodes it once.
    return sorted(rows.values(), key=lambda row: (row["member"], row["view"], row["id"]))


def _check(item: NewItem, source: str, number: int) -> None:
    if not item.caption.strip():
        raise SetError(f"row {number}: the caption is blank")
    if item.object and not OBJECT_ID.fullmatch(item.object):
        raise SetError(f"row {number}: the object label is no opaque concept id")
    if item.style and not STYLE_ID.fullmatch(item.style):
        raise SetError(f"row {number}: the style label is no opaque style id")
    if not SOURCE_ID.fullmatch(source):
        raise SetError(f"row {number}: the source is not 16 hex digits of a sha256")
    if not item.views or min(item.views) < 0:
        raise SetError(f"row {number}: views must be given and not negative, got {item.views}")


def _pack_shards(rows: list[dict[str, str | int]], spool: Path, folder: Path, shard_size: int) -> None:
    """Pack the spooled images in member order and note each row's shard."""
    members = sorted(path.name for path in spool.iterdir())
    shard_of: dict[str, str] = {}
    for number, batch in enumerate(_batches(members, shard_size)):
        name = f"images-{number:05d}.tar"
        write_shard(folder / name, [spool / member for member in batch])
        shard_of.update(dict.fromkeys(batch, name))
    for row in rows:
        row["shard"] = shard_of[str(row["member"])]


def _batches(names: list[str], size: int) -> Iterator[list[str]]:
    remaining = iter(names)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _write_items(rows: list[dict[str, str | int]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in COLUMNS.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
