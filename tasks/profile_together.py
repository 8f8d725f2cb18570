"""The profile of one run, shared out over several processes of this machine by torchrun.

The run's own process stays one, because its ledger and registry calls must happen once.  It writes what is to
be done into the run folder and waits; the processes read it, take their shares of the items
(`unlearning.distributed`) and leave one result, or the error that ended them, in the run folder:

    python -m torch.distributed.run --standalone --nproc-per-node N -m tasks.profile_together FOLDER

Nothing else of theirs is passed on: a text that is not ours may tell of the forget set.
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
from contracts.errors import ModelError, ProcessEnded, SluglineError
from contracts.values import ModelHandle, Plan
from contracts.whole_files import written_whole
from tasks.profiling import ProfileHandle, take_profile
from tasks.progress import Tell, bar
from tasks.run import Run

JOB, DONE, TOLD, ERROR = "profile-job.json", "profile-done.json", "profile-told.txt", "profile-error-{}.json"
LOGS, STDERR = "profile-logs", "profile-stderr.txt"
LOOK = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """What the processes are handed."""

    run: Run
    plan: Plan
    base: ModelHandle


def profile_together(run: Run, plan: Plan, base: ModelHandle, tell: Tell) -> ProfileHandle:
    """What `tasks.profiling.take_profile` leaves, computed by `plan.processes` processes.

    Raises:
        SluglineError: as it was raised by one of them.
        ProcessEnded: one of them ended otherwise.
    """
    _leave(run.path(JOB), to_plain(Job(run, plan, base)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    shared = ["--nproc-per-node", str(plan.processes), "--log-dir", str(run.path(LOGS))]
    with run.path(STDERR).open("w") as stderr:
        status = _wait([*torchrun, *shared, "-m", __name__, run.folder], stderr, run.path(TOLD), tell)
    if status == 0 and run.path(DONE).exists():
        return from_plain(ProfileHandle, json.loads(run.path(DONE).read_text()))
    what = f"one of {plan.processes} processes that profile together ended"
    paths = (run.path(ERROR.format(rank)) for rank in range(plan.processes))
    left = [json.loads(path.read_text()) for path in paths if path.exists()]
    # Where one fails, another may fail for want of it: what says something goes first.
    for error, message in left:
        if message is not None:
            raise getattr(errors, error, SluglineError)(message)
    for error, _ in left:
        raise ProcessEnded(f"{what} with {error}; SLUGLINE_PROCESSES=1 shows where")
    raise ProcessEnded(f"{what} with exit status {status}")


def _wait(command: list[str], stderr: Any, told: Path, tell: Tell) -> int:
    """The exit status of a command, whose progress is passed on; it does not outlive this process's wait."""
    # Ours and no other `tasks`, whatever folder a run was started in.
    paths = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    seen = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=stderr, stderr=stderr, env={**os.environ, **own}
    ) as process:
        assert process.stdin is not None
        try:
            while True:
                status = process.poll()
                seen = _pass_on(told, seen, tell)
                if status is not None:
                    return status
                time.sleep(LOOK)
        finally:
            process.stdin.close()
            process.terminate()


def _pass_on(told: Path, seen: int, tell: Tell) -> int:
    """Tell what the file says beyond the lines `seen`; how many whole lines it has."""
    whole = told.read_text().rpartition("\n")[0].splitlines() if told.exists() else []
    for line in whole[seen:]:
        what, done, total = line.split("\t")
        tell(what, int(done), int(total))
    return len(whole)


def work(folder: Path) -> None:
    """One of the processes: its share of the job that lies in the run folder.

    Raises:
        SluglineError: as `tasks.profiling.take_profile`; it is left for the waiting process, too.
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
            found = take_profile(job.run, job.plan, job.base, str(device), threads, tell)
        except Exception as error:
            ours = str(error) if isinstance(error, SluglineError) else None
            _leave(folder / ERROR.format(rank()), [type(error).__name__, ours])
            raise
        if rank() == 0:
            _leave(folder / DONE, to_plain(found))


def _leave(path: Path, value: Any) -> None:
    """Write whole or not at all: the others are ended as soon as one has failed."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(value))


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
