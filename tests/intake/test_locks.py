"""Locks exclude threads and processes, time out with a clear error, and die with their holder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import PromotionConflict
from intake.locks import FileLock, model_lock

REPOSITORY = Path(__file__).parents[2]


def test_a_held_lock_refuses_a_second_holder_and_frees_at_release(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "x.lock"), FileLock(tmp_path / "x.lock")

    with first, pytest.raises(PromotionConflict, match="x"):
        second.acquire()

    second.acquire()
    second.release()


def test_a_lock_of_a_killed_process_is_free_at_once(ledger_url: str, locks: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from intake.locks import model_lock\n"
        "with model_lock(sys.argv[1], pathlib.Path(sys.argv[2]), 'clip'):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, ledger_url, str(locks)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(PromotionConflict), model_lock(ledger_url, locks, "clip", timeout_s=0.0):
            pass

        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    # The kernel frees a file lock with the process, the server an advisory lock with its connection.
    with model_lock(ledger_url, locks, "clip", timeout_s=5.0):
        pass


def test_models_have_separate_locks(ledger_url: str, locks: Path) -> None:
    with (
        model_lock(ledger_url, locks, "clip"),
        model_lock(ledger_url, locks, "other", timeout_s=0.0),
        pytest.raises(PromotionConflict),
        model_lock(ledger_url, locks, "clip", timeout_s=0.0),
    ):
        pass


def test_a_released_lock_can_be_taken_again(ledger_url: str, locks: Path) -> None:
    # Mutation: a pooled PostgreSQL connection would keep its session lock after the block.
    for _ in range(2):
        with model_lock(ledger_url, locks, "clip", timeout_s=0.0):
            pass
