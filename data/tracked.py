"""The DVC-tracked files of a repository at one git revision: what is listed, and its bytes, checked.

DVC's md5 of a folder is an address, not evidence.  It ties together what was committed and what is
read: the revision's .dvc file or dvc.lock names it, the listing of the folder must add up to it, and
every file must have the md5 that the listing gives it.

Bytes come from the remote, or from the local DVC cache if they are there already.  The cache is
never filled: forget data must not stay behind.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from contracts.errors import DigestMismatch, InputError, StoreUnreachable
from data.tracking import dvc_root, private_site_cache

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

_PIECE_BYTES = 2**20


class TrackedTree:
    """Read access to the tracked paths of one revision; opens DVC once for many reads.

    Paths are relative to the repository's root, with forward slashes; a path may also lie inside a
    tracked folder.

    Attributes:
        root: the repository's root.
        revision: the full sha of the commit that is read.
    """

    def __init__(self, repo: Path, rev: str | None) -> None:
        """Open `repo` at `rev` (any git revision; None: HEAD).

        With None, a path whose DVC entry in the working tree differs from HEAD is refused when it
        is asked for: the caller most likely means what stands there, and only a commit can be pinned.

        Raises:
            InputError: no DVC repository, no git repository, or an unknown revision.
        """
        self.root = dvc_root(repo)
        with private_site_cache(self.root):
            self.revision = _full_revision(self.root, rev)
            self._pinned = _open(self.root, self.revision)
            self._working = _open(self.root, None) if rev is None else None

    def close(self) -> None:
        """Let go of DVC's index files."""
        self._pinned.close()
        if self._working is not None:
            self._working.close()

    def listing(self, path: str) -> tuple[str, dict[str, str]]:
        """The md5 of a path, and of every file below it by relative name ("" if it is a file).

        A folder inside a tracked folder has no md5 on record: it gets the one DVC would record.

        Raises:
            InputError: the path is not tracked, or its DVC entry is not committed.
            StoreUnreachable: neither remote nor cache has the folder's listing.
            DigestMismatch: the listing does not add up to the recorded md5.
        """
        recorded = _recorded(self._pinned, path)
        if self._working is not None and _recorded(self._working, path) != recorded:
            raise InputError(
                f"the DVC entry of {path} is not committed: "
                "commit its .dvc file or dvc.lock, or pass a revision"
            )
        untracked = InputError(f"{path} is not tracked by DVC at {self.revision[:12]}")
        if recorded is None:
            raise untracked
        output, output_md5 = recorded
        below = self._below(output)
        if output_md5.endswith(".dir") and _folder_md5(below) != output_md5:
            raise DigestMismatch(f"the listing of {output} at {self.revision[:12]} is not {output_md5}")
        if path == output:
            return output_md5, below
        inside = path.removeprefix(f"{output}/")
        if inside in below:
            return below[inside], {"": below[inside]}
        prefix = f"{inside}/"
        files = {name.removeprefix(prefix): md5 for name, md5 in below.items() if name.startswith(prefix)}
        if not files:
            raise untracked
        return _folder_md5(files), files

    def content(self, path: str, name: str, md5: str) -> bytes:
        """The bytes of one small file of a listing; raises as `copy` does."""
        return b"".join(self._pieces(path, name, md5))

    def copy(self, path: str, name: str, md5: str, target: Path) -> None:
        """Stream one file of a listing to `target`.

        Raises:
            StoreUnreachable: neither remote nor cache gives the bytes.
            DigestMismatch: they do not have the listed md5; what was written is not to be used.
        """
        with target.open("wb") as stream:
            for piece in self._pieces(path, name, md5):
                stream.write(piece)

    def _below(self, output: str) -> dict[str, str]:
        try:
            found = self._pinned.find(output, detail=True, dvc_only=True)
        except Exception:
            raise self._unreachable(output) from None
        files = {}
        for path, info in found.items():
            name = path.strip("/").removeprefix(output).lstrip("/")
            if name:
                normalised(name)  # a listing is data from outside: no ".." into other folders
            files[name] = str(info["dvc_info"].get("md5"))
        return files

    def _pieces(self, path: str, name: str, md5: str) -> Iterator[bytes]:
        found = hashlib.md5(usedforsecurity=False)
        try:
            with self._pinned.open(f"{path}/{name}" if name else path, "rb") as stream:
                while piece := stream.read(_PIECE_BYTES):
                    found.update(piece)
                    yield piece
        except Exception:  # every kind of remote has exceptions of its own, with addresses in them
            raise self._unreachable(path) from None
        if found.hexdigest() != md5:
            raise DigestMismatch(
                f"a file of {path} at {self.revision[:12]} does not have the md5 DVC promised"
            )

    def _unreachable(self, path: str) -> StoreUnreachable:
        return StoreUnreachable(
            f"the DVC remote does not give {path} at {self.revision[:12]}: "
            "check that it answers and that the data was pushed"
        )


def normalised(path: str) -> str:
    """A relative path without needless parts.

    Raises:
        InputError: the path is empty, absolute, or leads out of the folder it is relative to.
    """
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts:
        raise InputError(f"{path!r} is not a path relative to the repository")
    return str(pure)


def _full_revision(root: Path, rev: str | None) -> str:
    from dvc.exceptions import DvcException
    from dvc.scm import SCM, resolve_rev

    try:
        with contextlib.closing(SCM(str(root))) as scm:
            return str(resolve_rev(scm, rev or "HEAD"))
    except DvcException:
        wanted = f"git revision {rev!r}" if rev else "git commit to pin"
        raise InputError(f"{root} has no {wanted}") from None


def _open(root: Path, rev: str | None) -> "DVCFileSystem":
    """DVC's view of the repository at a revision (None: the working tree), with its index opened."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    tree = DVCFileSystem(str(root), rev=rev)
    try:
        tree.info("/")  # DVC opens lazily; now is when the private site cache is set
    except DvcException as error:
        raise InputError(f"DVC cannot read {root}: {type(error).__name__}") from None
    return tree


def _recorded(tree: "DVCFileSystem", path: str) -> tuple[str, str] | None:
    """The DVC output that is `path` or holds it, and its md5 on record; None if there is none."""
    parts = PurePosixPath(path).parts
    for depth in range(1, len(parts) + 1):
        candidate = "/".join(parts[:depth])
        try:
            tracked = tree.info(candidate).get("dvc_info", {})
        except FileNotFoundError:
            return None
        if tracked.get("isout"):
            return candidate, str(tracked.get("md5"))
    return None


def _folder_md5(files: Mapping[str, str]) -> str:
    """DVC's address of a folder: md5 of its JSON listing in order of the names."""
    listing = json.dumps([{"md5": files[name], "relpath": name} for name in sorted(files)])
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"
