"""Locks between processes whose hold ends with the process: none can go stale, also after SIGKILL.

On one machine the kernel keeps them (`flock` on a file); with a PostgreSQL ledger the server does
(session advisory lock), so that promotions are serialised across machines.  MLflow aliases have no
compare-and-set, hence one promotion at a time per model is what makes the expected-value check true.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from contracts.errors import PromotionConflict

POLL_S = 0.05


class FileLock:
    """An exclusive `flock` on a file, also between threads; use it as a context manager.

    The file is never deleted: a waiter could otherwise lock an inode that nobody else can find.
    """

    def __init__(self, path: Path, timeout_s: float = 0.0) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock, or give up after `timeout_s`.

        Raises:
            PromotionConflict: another process or thread holds it.
        """
        # O_CLOEXEC (Python's default) keeps the lock out of child programs, which would outlive us.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _poll(lambda: _flock(fd), self._timeout_s, self.path.stem)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> "FileLock":
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def postgres_lock(ledger_url: str, name: str, timeout_s: float) -> Iterator[None]:
    """Hold PostgreSQL's session advisory lock of that name; it ends with the connection.

    Raises:
        PromotionConflict: another session holds it.
        StoreUnreachable: the ledger's server does not answer.
    """
    from sqlalchemy import text

    from intake.database import database_errors, open_engine

    # pg_advisory_lock takes one signed 64-bit key.
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    engine = open_engine(ledger_url)
    try:
        with database_errors(engine):
            connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:

            def try_lock() -> bool:
                with database_errors(engine):
                    got = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key})
                    return bool(got.scalar_one())

            _poll(try_lock, timeout_s, name)
            yield
        finally:
            # Closing the session is the unlock; returning it to a pool would keep the lock.
            connection.invalidate()
            connection.close()
    finally:
        engine.dispose()


def model_lock(
    ledger_url: str, locks: Path, model: str, timeout_s: float = 30.0
) -> AbstractContextManager[object]:
    """The strict lock of one model's aliases: PostgreSQL's if the ledger is there, else a file.

    Raises (on entering):
        PromotionConflict: another promotion holds it for longer than `timeout_s`.
    """
    name = "model-" + hashlib.sha256(model.encode()).hexdigest()[:16]
    if ledger_url.startswith("postgres"):
        return postgres_lock(ledger_url, name, timeout_s)
    return FileLock(locks / f"{name}.lock", timeout_s)


def _flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _poll(attempt: Callable[[], bool], timeout_s: float, name: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not attempt():
        if time.monotonic() >= deadline:
            raise PromotionConflict(f"another process holds the lock {name} (waited {timeout_s:g} s)")
        time.sleep(POLL_S)
