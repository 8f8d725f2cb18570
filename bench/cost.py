"""What a piece of work costs: CPU seconds of all threads, wall-clock seconds, growth of resident memory."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclass
class Cost:
    """Filled in when the work is done.

    peak_growth_mib: highest resident size during the work over the one before it; None where the system
        cannot say.
    """

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_growth_mib: float | None = None


@contextmanager
def costing() -> Iterator[Cost]:
    """Measures what happens inside, also if it raises."""
    cost = Cost()
    before = _reset_peak()
    cpu, wall = process_time(), perf_counter()
    try:
        yield cost
    finally:
        cost.cpu_seconds, cost.wall_seconds = process_time() - cpu, perf_counter() - wall
        if before is not None:
            cost.peak_growth_mib = (_kib("VmHWM") - before) / 1024


def _reset_peak() -> int | None:
    """Make the peak the present resident size (KiB), and return that; only Linux with glibc can."""
    try:
        # Else what earlier work freed, but the allocator kept, would be room that costs nothing.
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _CLEAR.write_text(_RESET_PEAK)
    except (OSError, AttributeError):
        return None
    return _kib("VmRSS")


def _kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
