"""`slugline sets add`: a folder, table or webdataset tar becomes a DVC-tracked set."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from re import Pattern

from contracts.errors import InputError, SetError
from contracts.values import Role
from data.layout import OBJECT_ID, STYLE_ID, SetSummary, concept_id, style_id
from data.pictures import decode_image
from data.sources import SourceRow, read_source
from data.tracking import dvc_root, track
from data.writing import NewItem, write_set


def add_set(
    source: Path,
    out: Path,
    role: Role,
    *,
    image_column: str = "image",
    caption_column: str = "caption",
    caption: str | None = None,
    object_column: str | None = None,
    style_column: str | None = None,
    concept: str | None = None,
    views: int = 1,
    personal: bool = True,
    licence: str = "unstated",
) -> SetSummary:
    """Build a set from `source` at `out` and `dvc add` it; on any problem nothing is left.

    Image bytes are stored as they are: not re-encoded, no metadata removed.  File names are
    replaced by digests; labels given as names are replaced by their ids.

    Args:
        source: folder, .csv/.jsonl/.parquet table or webdataset .tar (`data.sources.read_source`).
        out: the new set's folder, inside a DVC repository.
        role: what the set is for.
        image_column: column of a table with the image path.
        caption_column: column of a table, or key of a sample's JSON, with the caption.
        caption: caption of every row that has none of its own.
        object_column: column or JSON key with each row's concept, as a name or an id.
        style_column: column or JSON key with each row's style, as a name or an id.
        concept: concept of every row, as a name or an id; excludes `object_column`.
        views: items per image: the image as drawn, and `views - 1` random views (`data.views`).
        personal: whether images or captions are about people.
        licence: the images' licence, in words.

    Raises:
        InputError: an option or the source is wrong, or `out` is in use or outside a DVC repository.
        SetError: a row is unusable; the message gives its number (in file name order for a folder).
    """
    if concept is not None and object_column is not None:
        raise InputError("give either one concept for all rows or a column of concepts, not both")
    if views < 1:
        raise InputError(f"a set needs at least one view per image, got views={views}")
    dvc_root(out)
    items = (
        NewItem(
            image=row.image,
            caption=_caption(row, caption_column, caption),
            object=_label(row, object_column, concept, OBJECT_ID),
            style=_label(row, style_column, None, STYLE_ID),
            views=tuple(range(views)),
        )
        for row in _decodable(read_source(source, image_column, caption_column))
    )
    summary = write_set(out, role, items, personal=personal, licence=licence)
    try:
        track(out)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return summary


def _decodable(rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    for row in rows:
        decode_image(row.image, f"row {row.number}")
        yield row


def _caption(row: SourceRow, column: str, default: str | None) -> str:
    own = row.fields.get(column)
    caption = default if own is None or own == "" else own
    if not isinstance(caption, str) or not caption.strip():
        raise SetError(f"row {row.number}: there is no caption")
    return caption


def _label(row: SourceRow, column: str | None, default: str | None, form: Pattern[str]) -> str:
    """The id of a row's label; "" if it has none."""
    value = row.fields.get(column) if column is not None else default
    if column is not None and column not in row.fields:
        raise InputError(f"row {row.number}: there is no column {column!r}")
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise SetError(f"row {row.number}: the label in column {column!r} is not text")
    if form.fullmatch(value):
        return value
    return concept_id(value) if form is OBJECT_ID else style_id(value)
