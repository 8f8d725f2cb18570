"""Programs that tests start: in a session of their own, and always stopped, children included."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

REPO = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

T = TypeVar("T")


def slugline(
    *arguments: str, environ: Mapping[str, str], timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the command line; what it printed and how it ended."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    return subprocess.run(command, cwd=REPO, env=environ, capture_output=True, text=True, timeout=timeout_s)


@contextmanager
def running(command: list[str], environ: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program while the block lasts, its output in `log`."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=log.parent, env=environ, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and what it started; a Prefect worker ignores the first signal."""
    for _ in range(2):
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until(probe: Callable[[], T | None], what: str, timeout_s: float = 120) -> T:
    """The first answer of `probe` that is not None."""
    deadline = time.monotonic() + timeout_s
    while (answer := probe()) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.3)
    return answer
