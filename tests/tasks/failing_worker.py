"""Processes of `test_profile_together` that end otherwise than they should: killed, or by an error."""

import os
import signal
import sys
import time
from pathlib import Path

from contracts.errors import SetError
from tasks import profile_together


def fails(*args: object) -> None:
    """The profile of a process: an error that is not ours, with a text that nobody may see."""
    if os.environ["FAILING_WORKER"] == "both":
        if os.environ["RANK"] == "1":
            raise SetError("the retain set is unusable")
        while not (Path(sys.argv[1]) / profile_together.ERROR.format(1)).exists():
            time.sleep(0.05)
    raise KeyError("a drawing of jane doe")


if __name__ == "__main__":
    if os.environ["FAILING_WORKER"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)  # as the machine does when memory runs out
    profile_together.take_profile = fails  # type: ignore[assignment]
    profile_together.work(Path(sys.argv[1]))
