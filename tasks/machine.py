"""What of the machine a run takes: its device, threads and processes, as the environment says."""

from __future__ import annotations

import os

from contracts.errors import InputError
from contracts.values import Method

THREADS_VARIABLE = "SLUGLINE_THREADS"
PROCESSES_VARIABLE = "SLUGLINE_PROCESSES"


def device() -> str:
    """Where a run computes: cuda if there is one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def threads() -> int:
    """Threads of a run: SLUGLINE_THREADS, else OMP_NUM_THREADS, else one per core of its own, up to eight.

    Raises:
        InputError: the variable is no number above 0.
    """
    own = min(len(os.sched_getaffinity(0)), 8)
    return _number(THREADS_VARIABLE) or _number("OMP_NUM_THREADS") or own


def processes(method: Method) -> int:
    """Processes that share the profile out: SLUGLINE_PROCESSES, if the method has anything to share; else 1.

    Raises:
        InputError: the variable is no number above 0, or there are fewer GPUs than that.
    """
    import torch

    from unlearning import methods

    asked = _number(PROCESSES_VARIABLE) or 1
    if not methods.shares_items(method):
        return 1
    if device() == "cuda" and asked > torch.cuda.device_count():
        raise InputError(
            f"{PROCESSES_VARIABLE} is {asked}, but there are {torch.cuda.device_count()} GPUs, one for each"
        )
    return asked


def _number(variable: str) -> int | None:
    """What a variable says, if it says anything."""
    # Of nested parallelism OMP_NUM_THREADS names every level; ours is the first.
    given = os.environ.get(variable, "").partition(",")[0]
    if not given:
        return None
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{variable} is {given!r}, a number above 0 is needed")
    return int(given)
