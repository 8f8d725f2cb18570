"""Sets and other tracked paths, pinned to a git revision and fetched whole or not at all.

A `SetRef` says which bytes stood where: git revision, DVC's md5, and `items_sha256`, which is the
evidence (DVC's md5 only locates).  A fetch checks all three, and every image against its sha256.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from contracts.errors import DigestMismatch, InputError, SetError
from contracts.values import SetRef
from contracts.whole_files import written_whole
from data.layout import (
    ITEMS_FILE,
    SHARD_NAME,
    SUMMARY_FILE,
    items_sha256,
    parse_items,
    parse_summary,
    read_items,
    read_summary,
)
from data.shards import verify_shards
from data.tracked import TrackedTree, normalised
from data.writing import staged


@dataclass(frozen=True)
class PathRef:
    """A DVC-tracked file or folder, pinned; `dvc_md5` ends in `.dir` for a folder."""

    path: str
    revision: str
    dvc_md5: str


class PinnedRepo:
    """A repository at one git revision; a context manager that opens DVC once for many reads.

        with PinnedRepo(repo) as pinned:  # HEAD
            ref = pinned.pin_set("data/sets/forget")
            pinned.fetch_set(ref, run_folder / "forget")
            pinned.fetch_path("data/labels", run_folder / "labels")

    Attributes:
        revision: the full sha of the commit that is read.
    """

    def __init__(self, repo: Path, rev: str | None = None) -> None:
        """Open `repo` at `rev`; None means HEAD, and refuses paths with an uncommitted DVC entry.

        Raises:
            InputError: no DVC repository, no git repository, or an unknown revision.
        """
        self._tree = TrackedTree(repo, rev)
        self.revision = self._tree.revision

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tree.close()

    def pin_set(self, path: str) -> SetRef:
        """Pin a set: read its summary and items, no images, and say what stands there.

        Raises:
            InputError: the path is not tracked, or its DVC entry is not committed.
            SetError: what stands there is no set.
            StoreUnreachable: neither remote nor cache has the bytes.
            DigestMismatch: they have other bytes than DVC recorded.
        """
        path = normalised(path)
        dvc_md5, files = self._tree.listing(path)
        _check_set_files(files, f"{path} at {self.revision[:12]}")
        summary_bytes = self._tree.content(path, SUMMARY_FILE, files[SUMMARY_FILE])
        items_bytes = self._tree.content(path, ITEMS_FILE, files[ITEMS_FILE])
        summary = parse_summary(summary_bytes, f"{path}/{SUMMARY_FILE}")
        items = parse_items(items_bytes, f"{path}/{ITEMS_FILE}")
        return SetRef(
            role=summary.role,
            path=path,
            revision=self.revision,
            dvc_md5=dvc_md5,
            items_sha256=items_sha256(items),
            n_items=len(items),
            personal=summary.personal,
        )

    def fetch_set(self, ref: SetRef, destination: Path) -> Path:
        """Copy a pinned set to `destination` (absent or empty), all of it checked.

        Raises:
            InputError: the pin is of another revision, or the destination is in use.
            SetError: what stands there is no set, or its shards and items disagree.
            StoreUnreachable: neither remote nor cache has the bytes.
            DigestMismatch: anything is not what was pinned.
        """
        if ref.revision != self.revision:
            raise InputError(f"{ref.path} is pinned at {ref.revision[:12]}, opened is {self.revision[:12]}")
        dvc_md5, files = self._tree.listing(ref.path)
        where = f"{ref.path} at {self.revision[:12]}"
        if dvc_md5 != ref.dvc_md5:
            raise DigestMismatch(f"{where} has md5 {dvc_md5}, pinned is {ref.dvc_md5}")
        _check_set_files(files, where)
        with staged(destination) as folder:
            for name, md5 in files.items():
                self._tree.copy(ref.path, name, md5, folder / name)
            _check_against_pin(folder, ref, where)
        return destination

    def fetch_path(self, path: str, destination: Path) -> PathRef:
        """Copy any tracked file or folder to `destination` (absent, or an empty folder).

        Raises:
            InputError: the path is not tracked, its entry is not committed, or the destination is in use.
            StoreUnreachable: neither remote nor cache has the bytes.
            DigestMismatch: they have other bytes than DVC recorded.
        """
        path = normalised(path)
        dvc_md5, files = self._tree.listing(path)
        if dvc_md5.endswith(".dir"):
            with staged(destination) as folder:
                for name, md5 in files.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    self._tree.copy(path, name, md5, folder / name)
        else:
            self._fetch_file(path, dvc_md5, destination)
        return PathRef(path=path, revision=self.revision, dvc_md5=dvc_md5)

    def _fetch_file(self, path: str, md5: str, destination: Path) -> None:
        if destination.exists():
            raise InputError(f"{destination} exists already")
        destination.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(destination) as partial:
            self._tree.copy(path, "", md5, partial)


def pin_set(repo: Path, path: str, rev: str | None = None) -> SetRef:
    """Pin one set; see `PinnedRepo` and `PinnedRepo.pin_set`."""
    with PinnedRepo(repo, rev) as pinned:
        return pinned.pin_set(path)


def fetch_set(repo: Path, ref: SetRef, destination: Path) -> Path:
    """Fetch one pinned set; see `PinnedRepo.fetch_set`."""
    with PinnedRepo(repo, ref.revision) as pinned:
        return pinned.fetch_set(ref, destination)


def fetch_path(repo: Path, path: str, rev: str | None, destination: Path) -> PathRef:
    """Fetch one tracked file or folder; see `PinnedRepo` and `PinnedRepo.fetch_path`."""
    with PinnedRepo(repo, rev) as pinned:
        return pinned.fetch_path(path, destination)


def _check_set_files(names: Iterable[str], where: str) -> None:
    """A set has a summary, items and shards, and nothing else."""
    rest = set(names)
    for name in (SUMMARY_FILE, ITEMS_FILE):
        if name not in rest:
            raise SetError(f"{where} is no set: it has no {name}")
        rest.remove(name)
    if strangers := sum(not SHARD_NAME.fullmatch(name) for name in rest):
        raise SetError(f"{where}: {strangers} files are not part of the set format")


def _check_against_pin(folder: Path, ref: SetRef, where: str) -> None:
    summary, items = read_summary(folder), read_items(folder)
    found = (items_sha256(items), summary.role, summary.personal)
    if found != (ref.items_sha256, ref.role, ref.personal):
        raise DigestMismatch(f"{where} does not hold the items that were pinned")
    if summary.n_items != len(items):
        raise SetError(
            f"{where}: {SUMMARY_FILE} counts {summary.n_items} items, {ITEMS_FILE} has {len(items)}"
        )
    verify_shards(folder, items)
