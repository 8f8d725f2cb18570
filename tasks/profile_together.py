"""The profile of one run, shared out over several processes of this machine by torchrun.

The run's own process stays one, because its ledger and registry calls must happen once.  It writes what is to
be done into the run folder and waits; the processes read it, take their shares of the items
(`unlearning.distributed`) and leave one result, or the error that ended them, in the run folder:

    python -m torch.distributed.run --standalone --nproc-per-node N -m tasks.profile_together FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts import errors
from contracts.canonical import from_plain, to_plain
from contracts.errors import ModelError, SluglineError
from contracts.values import ModelHandle, Plan
from tasks.profiling import ProfileHandle, measure
from tasks.progress import Tell, bar
from tasks.run import Run

JOB, DONE, TOLD, ERROR = "profile-job.json", "profile-done.json", "profile-told.txt", "profile-error-{}.json"
LOOK = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """What the processes are handed."""

    run: Run
    plan: Plan
    base: ModelHandle


def profile_together(run: Run, plan: Plan, base: ModelHandle, tell: Tell) -> ProfileHandle:
    """What `tasks.profiling.measure` leaves, computed by `plan.processes` processes.

    Raises:
        SluglineError: as it was raised by one of them.
        ModelError: one of them ended otherwise; what it wrote to standard error is passed on.
    """
    for name in (DONE, TOLD, *(ERROR.format(rank) for rank in range(plan.processes))):
        run.path(name).unlink(missing_ok=True)  # of an attempt before
    run.path(JOB).write_text(json.dumps(to_plain(Job(run, plan, base))))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    shared = ["--nproc-per-node", str(plan.processes), "-m", __name__, run.folder]
    with run.path("profile-stderr.txt").open("w+") as stderr:
        status = _wait([*torchrun, *shared], stderr, run.path(TOLD), tell)
        if status == 0 and run.path(DONE).exists():
            return from_plain(ProfileHandle, json.loads(run.path(DONE).read_text()))
        for rank in range(plan.processes):
            if run.path(ERROR.format(rank)).exists():
                raised = json.loads(run.path(ERROR.format(rank)).read_text())
                raise getattr(errors, raised["error"], SluglineError)(raised["message"]) from None
        stderr.seek(0)
        sys.stderr.write(stderr.read())
    raise ModelError(f"one of {plan.processes} processes that profile together ended with status {status}")


def _wait(command: list[str], stderr: Any, told: Path, tell: Tell) -> int:
    """The exit status of a command, whose progress is passed on; it does not outlive this process's wait."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr)
    seen = 0
    try:
        while (status := process.poll()) is None:
            time.sleep(LOOK)
            lines = told.read_text().splitlines() if told.exists() else []
            for line in lines[seen:]:
                what, done, total = line.split("\t")
                tell(what, int(done), int(total))
            seen = len(lines)
    finally:
        process.terminate()
        process.wait()
    return status


def work(folder: Path) -> None:
    """One of the processes: its share of the job that lies in the run folder.

    Raises:
        SluglineError: as `tasks.profiling.measure`; it is left for the waiting process, too.
    """
    from unlearning.distributed import process_group, rank, size

    threading.Thread(target=_end_with_the_run, daemon=True).start()
    job = from_plain(Job, json.loads((folder / JOB).read_text()))
    with process_group() as device, bar("profile") as silent:
        try:
            if size() != job.plan.processes:
                raise ModelError(f"{size()} processes met to profile together, not {job.plan.processes}")
            threads = max(1, job.plan.threads // job.plan.processes)
            tell = _teller(folder / TOLD) if rank() == 0 else silent
            found = measure(job.run, job.plan, job.base, str(device), threads, tell)
        except SluglineError as error:
            left = {"error": type(error).__name__, "message": str(error)}
            (folder / ERROR.format(rank())).write_text(json.dumps(left))
            raise
        if rank() == 0:
            (folder / DONE).write_text(json.dumps(to_plain(found)))


def _end_with_the_run() -> None:
    """End this process when the run's own is gone, however it went: nobody else holds the other end."""
    sys.stdin.read()
    os._exit(1)


def _teller(path: Path) -> Tell:
    def tell(what: str, done: int, total: int) -> None:
        with path.open("a") as stream:
            stream.write(f"{what}\t{done}\t{total}\n")

    return tell


if __name__ == "__main__":
    work(Path(sys.argv[1]))
