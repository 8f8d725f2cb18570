"""The kinds of input a set can be built from: a folder, a table, a webdataset tar.

Each reader yields `SourceRow`s in a fixed order and numbers them from 1.  Messages name rows by
that number, never by file name, caption or label: those may be about people.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import InputError, SetError
from data.tar_samples import samples

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class SourceRow:
    """One image as found, with what the source says about it; `fields` holds captions and labels."""

    number: int
    image: bytes
    fields: Mapping[str, Any]


def read_source(source: Path, image_column: str, caption_column: str) -> Iterator[SourceRow]:
    """The rows of any supported source; the caption is under `caption_column` in `fields`.

    Args:
        source: a folder of images with an optional `<same stem>.txt` caption each; a .csv, .jsonl or
            .parquet table; or a webdataset .tar (`key.jpg` with `key.txt` or `key.json`).
        image_column: column of a table with the image's path, relative to the table (a parquet may
            hold the bytes instead, plain or as `{"bytes": ...}`).
        caption_column: column of a table, or key of a sample's JSON, with the caption.

    Raises:
        InputError: the source does not exist, or is of no known kind, or lacks a named column.
        SetError: a row is unusable; the message gives its number.
    """
    if source.is_dir():
        return _folder_rows(source, caption_column)
    if not source.is_file():
        raise InputError(f"the source {source} does not exist")
    match source.suffix.lower():
        case ".csv" | ".jsonl" | ".parquet":
            return _table_rows(source, image_column)
        case ".tar":
            return _tar_rows(source, caption_column)
    raise InputError(f"the source {source} is no folder and no .csv, .jsonl, .parquet or .tar file")


def _folder_rows(folder: Path, caption_column: str) -> Iterator[SourceRow]:
    """Images below a folder in path order.  Hidden files are skipped; any other stranger is refused."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if not path.is_dir() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    )
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    sidecars = {path.with_suffix(".txt") for path in images}
    # A .heic passed over in silence would be a photo that is not forgotten.
    if strangers := len(set(files) - set(images) - sidecars):
        raise SetError(f"{strangers} files of the source are neither PNG, JPEG, WebP nor a caption of one")
    for number, path in enumerate(images, start=1):
        sidecar = path.with_suffix(".txt")
        fields = {caption_column: _text(sidecar.read_bytes(), number)} if sidecar.is_file() else {}
        yield SourceRow(number, _image_bytes(path, number), fields)


def _table_rows(table: Path, image_column: str) -> Iterator[SourceRow]:
    for number, fields in enumerate(_records(table), start=1):
        if image_column not in fields:
            raise InputError(f"row {number}: the table has no column {image_column!r}")
        image = fields[image_column]
        if isinstance(image, Mapping):  # Hugging Face datasets: {"bytes": ..., "path": ...}
            image = image.get("bytes")
        if isinstance(image, str) and image:
            image = _image_bytes(table.parent / image, number)
        if not isinstance(image, bytes):
            raise SetError(f"row {number}: column {image_column!r} holds no image path")
        yield SourceRow(number, image, fields)


def _records(table: Path) -> Iterator[Mapping[str, Any]]:
    match table.suffix.lower():
        case ".csv":
            return _csv_records(table)
        case ".jsonl":
            return _jsonl_records(table)
    return _parquet_records(table)


def _csv_records(table: Path) -> Iterator[Mapping[str, Any]]:
    import csv

    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            yield from csv.DictReader(stream, strict=True)
    except (csv.Error, UnicodeDecodeError):
        raise SetError("the table is not a well-formed UTF-8 CSV file") from None


def _jsonl_records(table: Path) -> Iterator[Mapping[str, Any]]:
    with table.open("rb") as stream:
        lines = (line for line in stream if line.strip())
        for number, line in enumerate(lines, start=1):
            yield _json_object(line, number)


def _parquet_records(table: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError):
        raise SetError("the table is not a readable parquet file") from None


def _tar_rows(archive: Path, caption_column: str) -> Iterator[SourceRow]:
    try:
        with tarfile.open(archive, "r:*") as tar:

            def content(header: tarfile.TarInfo) -> bytes:
                stream = tar.extractfile(header)
                assert stream is not None  # a plain file has one
                return stream.read()

            for number, sample in enumerate(samples(tar, content, "the tar"), start=1):
                yield _sample_row(sample, number, caption_column)
    except (tarfile.TarError, EOFError, OSError):
        raise SetError("the tar is cut short or damaged") from None


def _sample_row(sample: Mapping[str, bytes], number: int, caption_column: str) -> SourceRow:
    images = [content for extension, content in sample.items() if extension in IMAGE_SUFFIXES]
    if len(images) != 1:
        raise SetError(f"row {number}: the sample has {len(images)} PNG, JPEG or WebP images, expected one")
    fields = dict(_json_object(sample[".json"], number)) if ".json" in sample else {}
    if ".txt" in sample:
        fields[caption_column] = _text(sample[".txt"], number)
    return SourceRow(number, images[0], fields)


def _image_bytes(path: Path, number: int) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise SetError(f"row {number}: the image file does not exist or cannot be read") from None


def _text(content: bytes, number: int) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SetError(f"row {number}: the caption is not UTF-8 text") from None


def _json_object(content: bytes, number: int) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, Mapping):
        raise SetError(f"row {number}: not a JSON object")
    return value
