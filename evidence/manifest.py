"""MANIFEST.json: which files make up a model folder, and the sha256 of each.

    {"schema": 1, "files": {"config.json": "<sha256>", "weights.safetensors": "<sha256>"}}

The folder is flat: every entry but the manifest itself is a plain file that the manifest names.  The
sha256 of the manifest file therefore stands for the whole folder.
"""

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.canonical import canonical_bytes, file_sha256
from contracts.errors import DigestMismatch, ModelError
from evidence.strict_json import parse

MANIFEST_NAME = "MANIFEST.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """The files of a folder with their sha256, and the sha256 of the manifest file itself."""

    files: Mapping[str, str]
    sha256: str


def write_manifest(folder: Path) -> Manifest:
    """Write the manifest of everything in `folder`, replacing an older one.

    Raises:
        ModelError: the folder is empty, or holds a folder, link or other special file.
    """
    names = _plain_files(folder)
    if not names:
        raise ModelError("a manifest needs at least one file")
    files = {name: file_sha256(folder / name) for name in sorted(names)}
    path = folder / MANIFEST_NAME
    path.write_bytes(canonical_bytes({"schema": 1, "files": files}))
    return Manifest(files, file_sha256(path))


def check_manifest(folder: Path) -> Manifest:
    """Check every byte of a folder against its manifest.

    Raises:
        ModelError: there is no folder or manifest, the manifest is malformed or names a path outside
            the folder, or the folder holds a folder, link or other special file.
        DigestMismatch: a file is missing, is not in the manifest, or has another sha256.
    """
    present = _plain_files(folder)
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ModelError(f"the model folder has no {MANIFEST_NAME}")
    content = path.read_bytes()
    files = _read(content)
    if extra := sorted(present - set(files)):
        raise DigestMismatch(f"file {extra[0]!r} is not in the manifest")
    if missing := sorted(set(files) - present):
        raise DigestMismatch(f"file {missing[0]!r} of the manifest is missing")
    for name, promised in sorted(files.items()):
        found = file_sha256(folder / name)
        if found != promised:
            raise DigestMismatch(f"file {name!r} has sha256 {found}, the manifest promises {promised}")
    return Manifest(files, file_sha256(path))


def _plain_files(folder: Path) -> set[str]:
    """Names of the files beside the manifest; anything but a plain file could stand for other bytes."""
    if not folder.is_dir():
        raise ModelError("the model folder does not exist")
    for entry in folder.iterdir():
        if not stat.S_ISREG(entry.lstat().st_mode):
            raise ModelError(f"{entry.name!r} in the model folder is not a plain file")
    return {entry.name for entry in folder.iterdir()} - {MANIFEST_NAME}


def _read(content: bytes) -> dict[str, str]:
    try:
        document = parse(content)
    except ValueError as error:
        raise ModelError(f"{MANIFEST_NAME} is malformed: {error}") from None
    if not isinstance(document, dict) or set(document) != {"schema", "files"} or document["schema"] != 1:
        raise ModelError(f"{MANIFEST_NAME} must hold schema 1 and files, and nothing else")
    files = document["files"]
    if not isinstance(files, dict) or not files:
        raise ModelError(f"{MANIFEST_NAME} names no files")
    for name, sha256 in files.items():
        if name in ("", ".", "..", MANIFEST_NAME) or any(c in name for c in "/\\\0"):
            raise ModelError(f"{MANIFEST_NAME} names {name!r}, which is not a file of the folder")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ModelError(f"{MANIFEST_NAME} gives no sha256 for {name!r}")
    return files
