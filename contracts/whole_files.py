"""Files that are there whole or not at all, whoever is killed while writing them."""

import glob
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"
"""How the name of what a killed process has left ends."""

ABANDONED = 24 * 3600
"""Seconds after which nobody is writing it any more."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; at the end that becomes `path`, after an error nothing does.

    Every writer has a file of its own: the last one to end decides what `path` holds.
    """
    sweep(path.parent, f".{glob.escape(path.name)}.*")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_private(path: Path, data: bytes) -> None:
    """Write a file whole, on the disk when this returns, readable by its owner only."""
    with written_whole(path) as partial:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())


def sweep(folder: Path, names: str = "*") -> None:
    """Remove what writers that were killed a day ago or earlier have left of files of these names."""
    for partial in folder.glob(names + PARTIAL):
        with suppress(FileNotFoundError):  # its writer may end meanwhile
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()
