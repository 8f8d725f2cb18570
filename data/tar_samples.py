"""Samples of a webdataset tar: consecutive members with one key, the path up to the first dot of the name."""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import TypeVar

from contracts.errors import SetError

T = TypeVar("T")


def samples(tar: tarfile.TarFile, take: Callable[[tarfile.TarInfo], T], where: str) -> Iterator[dict[str, T]]:
    """What `take` makes of a sample's members, by lower-case suffix (".jpg"), in the order of the tar.

    Args:
        tar: open for reading; its list of members is not kept.
        take: called with every member's header while the tar stands there, so a compressed one is read
            once from start to end.
        where: what to call the tar in a message; members are named by their number, never by their name.

    Raises:
        SetError: a member is no plain file, has an unsafe name, or repeats one of its sample's suffixes.
    """
    key, sample, number = "", dict[str, T](), 0
    while (header := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header of the tar
        number += 1
        path = PurePosixPath(header.name)
        if path.is_absolute() or ".." in path.parts:
            raise SetError(f"member {number} of {where} has an unsafe name")
        if header.isdir():
            continue
        # A link has no bytes of its own, and may point anywhere.
        if not header.isreg():
            raise SetError(f"member {number} of {where} is a link or a device, not a plain file")
        stem, _, suffix = path.name.partition(".")
        if sample and str(path.parent / stem) != key:
            yield sample
            sample = {}
        key = str(path.parent / stem)
        if f".{suffix.lower()}" in sample:
            raise SetError(f"member {number} of {where} repeats a name")
        sample[f".{suffix.lower()}"] = take(header)
    if sample:
        yield sample
