"""Image tars: written byte for byte the same, read by member without unpacking."""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

from contracts.errors import DigestMismatch, SetError
from data.layout import MEMBER_NAME, SHARD_NAME

if TYPE_CHECKING:
    import pandas as pd


def write_shard(path: Path, files: Sequence[Path]) -> None:
    """Pack files into an uncompressed tar whose headers depend on names and sizes only."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            header = tarfile.TarInfo(file.name)  # mtime, uid, gid 0 and mode 0644 by default
            header.size = file.stat().st_size
            with file.open("rb") as stream:
                tar.addfile(header, stream)


@dataclass
class ShardReader:
    """Reads members of a set's shards by offset: any order, one open file, nothing unpacked."""

    folder: Path
    _index: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    _shard: str = ""
    _stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()

    def members(self, shard: str) -> frozenset[str]:
        """The names of a shard's members.

        Raises:
            SetError: see `read`.
        """
        return frozenset(self._offsets(shard))

    def read(self, shard: str, member: str, sha256: str, item: str) -> bytes:
        """The bytes of one member, checked against their digest.

        Args:
            shard: name of a tar in the set's folder.
            member: name in the tar.
            sha256: hex digest the bytes must have.
            item: the item's id, for messages.

        Raises:
            SetError: the shard is missing, cut short, or holds anything but plain image files.
            DigestMismatch: the member's bytes have another digest.
        """
        offsets = self._offsets(shard)
        if member not in offsets:
            raise SetError(f"item {item}: its image is not in the shard")
        if self._shard != shard or self._stream is None:
            if self._stream is not None:
                self._stream.close()
            self._stream, self._shard = (self.folder / shard).open("rb"), shard
        offset, size = offsets[member]
        self._stream.seek(offset)
        payload = self._stream.read(size)
        if hashlib.sha256(payload).hexdigest() != sha256:
            raise DigestMismatch(f"item {item}: the stored image does not have the promised sha256")
        return payload

    def _offsets(self, shard: str) -> dict[str, tuple[int, int]]:
        if shard not in self._index:
            self._index[shard] = _scan(self.folder, shard)
        return self._index[shard]


def verify_shards(folder: Path, items: "pd.DataFrame") -> None:
    """Check that the shards hold exactly the images the items name, with their digests.

    Raises:
        SetError: a shard or member is missing, surplus, unsafe or cut short.
        DigestMismatch: a member's bytes have another digest.
    """
    images = items.drop_duplicates(["shard", "member", "sha256"])
    present = {path.name for path in folder.glob("*.tar")}
    if surplus := len(present - set(images["shard"])):
        raise SetError(f"{folder.name}: {surplus} shards hold no image of the set")
    with ShardReader(folder) as shards:
        for shard, rows in images.groupby("shard"):
            for member, sha256, item in zip(rows["member"], rows["sha256"], rows["id"], strict=True):
                shards.read(str(shard), member, sha256, item)
            if surplus := len(shards.members(str(shard)) - set(rows["member"])):
                raise SetError(f"{folder.name}/{shard}: {surplus} members belong to no item")


def _scan(folder: Path, shard: str) -> dict[str, tuple[int, int]]:
    """Member -> (offset, size) of a shard.  Member names are never used as paths, and never shown."""
    if not SHARD_NAME.fullmatch(shard):
        raise SetError(f"{folder.name}: a shard name in the items is not of the form images-00000.tar")
    where = f"{folder.name}/{shard}"
    try:
        with tarfile.open(folder / shard, "r:") as tar:
            headers = tar.getmembers()
    except FileNotFoundError:
        raise SetError(f"{where} is missing") from None
    except (tarfile.TarError, OSError):
        raise SetError(f"{where} is cut short or no tar") from None
    offsets: dict[str, tuple[int, int]] = {}
    for number, header in enumerate(headers, start=1):
        if not header.isreg() or not MEMBER_NAME.fullmatch(header.name):
            raise SetError(f"{where}: member {number} is not a plain file with an opaque image name")
        if header.name in offsets:
            raise SetError(f"{where}: member {number} repeats a name")
        offsets[header.name] = (header.offset_data, header.size)
    return offsets
