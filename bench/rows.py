"""Rows on disk, one JSON object a line: appended as they come, and never measured twice."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from contracts.canonical import digest

Row = dict[str, Any]


def row_key(
    weights_sha256: str, targets: Sequence[str], method_sha256: str, retain_known: bool = False
) -> str:
    """What a row is about, whatever the code that measured it: model, request, method, and what it was given.

    Args:
        weights_sha256: of the model.
        targets: of the request.
        method_sha256: of the method with its options, also those that it was not told.
        retain_known: what it uses of the retain set was measured before (`bench.case.Case.given`).
    """
    told = [weights_sha256, list(targets), method_sha256]
    return digest([*told, "retain known"] if retain_known else told)[:32]


class Rows:
    """The rows of one results folder.

    Several processes may append to the same file, and one may be killed while it does: what is no
    whole line is not a row.  Of rows with equal keys the last one counts.

    Args:
        path: the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, Row] = {row["key"]: row for row in _read(path)}

    def append(self, row: Row) -> None:
        """Keep a row, on disk before this returns."""
        line = json.dumps(row, sort_keys=True, allow_nan=False).encode() + b"\n"
        with self._path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, 2)
                line = line if stream.read(1) == b"\n" else b"\n" + line
            stream.write(line)
        self._rows[row["key"]] = row

    def holds(self, key: str, audits: Mapping[str, Any]) -> bool:
        """Whether that row is there with all of these audits under these settings.

        An error that slugline raised on purpose is a result like any other; a row that something
        unexpected ended is not there, so that a run after the repair measures it.
        """
        row = self._rows.get(key)
        if row is None or (row["error"] and not row["error"]["expected"]):
            return False
        if row["error"]:
            return True
        return all(row["audits"].get(name, {}).get("settings") == told for name, told in audits.items())

    def of(self, keys: Sequence[str]) -> list[Row]:
        """The rows of these keys that are there, in that order."""
        return [self._rows[key] for key in keys if key in self._rows]


def _read(path: Path) -> Iterator[Row]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a writer was killed here
        if isinstance(row, dict) and "key" in row:
            yield row
