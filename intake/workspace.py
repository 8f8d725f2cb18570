"""Where slugline keeps things: one home folder, two store URLs, and run folders that leave no trace.

Standard library only, so that `slugline --help` and the doctor can say where things are at once.
"""

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import InputError, PromotionConflict
from intake.locks import FileLock

HOME_VARIABLE = "SLUGLINE_HOME"
LEDGER_VARIABLE = "SLUGLINE_LEDGER_URL"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"

_RUN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_OWNER_LOCK = ".owner.lock"


@dataclass(frozen=True)
class Workspace:
    """One slugline home; `tracking_uri` None means the MLflow store embedded in it."""

    home: Path
    ledger_url: str
    tracking_uri: str | None

    @classmethod
    def open(cls, root: Path | None = None, environ: Mapping[str, str] | None = None) -> "Workspace":
        """The workspace at `root`, its folders created, private to the user (mode 0700).

        A home that was there before keeps its mode, but if everybody may write there, others are shut out:
        who can replace the ledger can replace what it says.

        Args:
            root: the home folder; None takes SLUGLINE_HOME, else `.slugline` in the current folder.
            environ: where SLUGLINE_HOME, SLUGLINE_LEDGER_URL and MLFLOW_TRACKING_URI are looked up;
                None is the process environment, `{}` a workspace that no variable can redirect.

        Raises:
            InputError: the home folder cannot be made or is not a folder.
        """
        variables = os.environ if environ is None else environ
        home = (root or Path(variables.get(HOME_VARIABLE) or ".slugline")).expanduser().absolute()
        workspace = cls(
            home=home,
            ledger_url=variables.get(LEDGER_VARIABLE) or f"sqlite:///{home / 'ledger.db'}",
            tracking_uri=variables.get(TRACKING_VARIABLE) or None,
        )
        try:
            folders = [workspace.runs, workspace.reports, workspace.evidence, workspace.locks]
            for folder in (home, *folders, workspace.cache):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if home.stat().st_mode & stat.S_IWOTH:
                home.chmod(0o700)
        except OSError as error:
            raise InputError(f"the workspace {home} cannot be created: {error.strerror}") from None
        return workspace

    @property
    def runs(self) -> Path:
        """Run folders: everything a run has on disk, gone when it ends."""
        return self.home / "runs"

    @property
    def reports(self) -> Path:
        """Finished reports (HTML and JSON), without personal data except the pictures asked for."""
        return self.home / "reports"

    @property
    def evidence(self) -> Path:
        """Certificates and the plans, measurements and verdicts they name."""
        return self.home / "evidence"

    @property
    def locks(self) -> Path:
        """Lock files; they hold no content, only kernel locks of living processes."""
        return self.home / "locks"

    @property
    def cache(self) -> Path:
        """What is measured once and used again; it may be deleted at any time."""
        return self.home / "cache"

    @contextmanager
    def run_folder(self, request_id: str) -> Iterator[Path]:
        """A fresh folder of mode 0700 for one run, removed at exit, whatever happened inside.

        SIGKILL leaves it behind without an owner; `sweep_stale_runs` then removes it.

        Raises:
            InputError: the request id is not opaque (it becomes a folder name).
        """
        if not _RUN_NAME.fullmatch(request_id):
            raise InputError(f"{request_id!r} is not an opaque request id")
        folder = self.runs / f"{request_id}-{secrets.token_hex(4)}"
        owner = FileLock(folder / _OWNER_LOCK)
        # The sweeper must never see a folder between mkdir and lock, or between unlock and rmdir:
        # both happen under the same mutex that it holds.
        with self._runs_mutex():
            folder.mkdir(mode=0o700)
            owner.acquire()
        try:
            yield folder
        finally:
            with self._runs_mutex():
                _remove(folder, owner)

    def sweep_stale_runs(self) -> int:
        """Remove the run folders whose process died; returns how many."""
        removed = 0
        with self._runs_mutex():
            for folder in sorted(p for p in self.runs.iterdir() if p.is_dir()):
                owner = FileLock(folder / _OWNER_LOCK)
                try:
                    owner.acquire()
                except PromotionConflict:
                    continue
                _remove(folder, owner)
                removed += 1
        return removed

    def _runs_mutex(self) -> FileLock:
        return FileLock(self.locks / "runs.lock", timeout_s=60.0)


def _remove(folder: Path, owner: FileLock) -> None:
    try:
        shutil.rmtree(folder)
    finally:
        owner.release()
