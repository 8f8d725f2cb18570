"""Which operations a piece of work spends its time in, and how long the device computes at all."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from bench.meter import Meter

MOST = 6
"""Operations that are named; the rest is summed up."""
NAME_LENGTH = 250
"""Of a kernel's name, which holds its template arguments."""


def hotspots(meter: Meter, run: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """What takes the time of `run`, which runs once more, watched.

    Args:
        meter: where and how precisely.
        run: the work.
        seconds: what it takes unwatched.

    Returns:
        busy: share of `seconds` in which the device computes; the rest it waits for the host.  None on a CPU.
        operations: kernels on a GPU, operations without those that they call on a CPU: name, seconds, calls,
            the longest first; at the end "others".
    """
    on_gpu = meter.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as watched:
        meter.seconds(run)
    microseconds = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [
        (event.key[:NAME_LENGTH], getattr(event, microseconds) / 1e6, event.count)
        for event in watched.key_averages()
        # An annotation spans the kernels inside it.
        if event.device_type.name == meter.device.upper() and not event.is_user_annotation
    ]
    found.sort(key=lambda each: -each[1])
    others = found[MOST:]
    total = sum(taken for _, taken, _ in found)
    rest = ("others", sum(taken for _, taken, _ in others), sum(calls for *_, calls in others))
    return {
        "busy": total / seconds if on_gpu else None,
        "operations": [
            {"name": name, "seconds": taken, "calls": calls} for name, taken, calls in [*found[:MOST], rest]
        ],
    }
