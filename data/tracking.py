"""Opening a DVC repository without leaving names of tracked files outside it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import InputError

_environment = threading.Lock()


def dvc_root(path: Path) -> Path:
    """The root of the DVC repository that holds `path`.

    Raises:
        InputError: there is none.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        if (folder / ".dvc").is_dir():
            return folder.resolve()
    raise InputError(f"{path} is not inside a DVC repository")


@contextmanager
def private_site_cache(root: Path) -> Iterator[None]:
    """Keep DVC's index of tracked files inside the repository while one is opened.

    By default DVC writes paths and hashes of tracked files to /var/tmp/dvc, readable by others
    and untouched by `dvc gc`.  A `DVC_SITE_CACHE_DIR` of the caller's own is respected.  DVC reads
    the setting from the environment only (while it opens the remote's configuration), once per
    `Repo`, so it is set for the time of opening, by one thread at a time.
    """
    folder = root / ".dvc" / "tmp" / "site"  # .dvc/.gitignore names tmp
    # Looked at under the lock: what another thread has set for its own opening is no caller's wish.
    with _environment:
        if "DVC_SITE_CACHE_DIR" in os.environ:
            yield
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["DVC_SITE_CACHE_DIR"] = str(folder)
        try:
            yield
        finally:
            del os.environ["DVC_SITE_CACHE_DIR"]


def track(folder: Path) -> None:
    """`dvc add` a folder: its content goes to the DVC cache, `<folder>.dvc` and .gitignore beside it.

    Raises:
        InputError: DVC refuses, for example because a stage of dvc.yaml already writes that folder.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    root = dvc_root(folder)
    with private_site_cache(root):
        repo = Repo(str(root))
        try:
            repo.scm_context.quiet = True  # no "to track the changes with git, run ..." on stdout
            # An absolute path: DVC resolves targets against the working directory, not the repository.
            repo.add(str(folder.resolve()))
        except DvcException as error:
            raise InputError(f"DVC cannot track {folder}: {type(error).__name__}") from None
        finally:
            repo.close()
