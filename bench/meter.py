"""What a piece of work takes on a device: seconds, floating-point operations, device memory.

On a CPU seconds are CPU seconds of all threads: other work on the machine changes them little.  On a GPU
they are wall-clock seconds from an idle device to an idle device.

bf16 is autocast around the whole piece of work: weights stay fp32, matrix products are bf16.  Methods that
read second moments off the graph (`unlearning.moments_graph`) do not run so.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Literal

import torch

from contracts.errors import InputError

Precision = Literal["fp32", "bf16"]

# Dense peak of the SXM parts in FLOP/s, from the data sheets; fp32 without TF32, which we never turn on.
PEAKS: Mapping[str, Mapping[Precision, float]] = {
    "H200": {"fp32": 66.9e12, "bf16": 989.4e12},
    "H100": {"fp32": 66.9e12, "bf16": 989.4e12},
    "A100": {"fp32": 19.5e12, "bf16": 311.9e12},
}
# Side of the square matrices that tell what this machine does at best: a GPU needs large ones.
_GEMM_SIDE = {"cpu": 1024, "cuda": 8192}
_GEMM_REPEATS = 5


@dataclass(frozen=True)
class Meter:
    """Runs work on one device at one precision and says what it took.

    Args:
        device: "cpu" or "cuda".
        precision: of matrix products.

    Raises:
        InputError: there is no such device here.
    """

    device: str = "cpu"
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: torch finds no CUDA device on this machine")

    @property
    def clock(self) -> str:
        """What `seconds` counts."""
        return "wall" if self.device == "cuda" else "cpu"

    @property
    def name(self) -> str | None:
        """The GPU's own name."""
        return torch.cuda.get_device_name() if self.device == "cuda" else None

    def seconds(self, run: Callable[[], Any]) -> float:
        """What `run` takes."""
        clock = perf_counter if self.device == "cuda" else process_time
        self._wait()
        began = clock()
        with self._autocast():
            run()
        self._wait()
        return clock() - began

    def device_growth_mib(self, run: Callable[[], Any]) -> float:
        """Highest memory of a GPU while `run` runs over the one before."""
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with self._autocast():
            run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def flop(self, run: Callable[[], Any]) -> float:
        """Floating-point operations of the matrix products and convolutions of `run`."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # Fused attention would pass some of its products by the counter.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, self._autocast():
                run()
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
        return float(counter.get_total_flops())

    def best_flop_per_s(self) -> float:
        """The rate of a large square matrix product here and now: what no work of ours can exceed."""
        side = _GEMM_SIDE[self.device]
        a = torch.randn(side, side, device=self.device)
        taken = [self.seconds(lambda: a @ a) for _ in range(_GEMM_REPEATS)]
        return 2.0 * side**3 / min(taken)

    def peak_flop_per_s(self) -> float | None:
        """What the data sheet promises; None where this module does not know the device."""
        name = self.name or ""
        return next((peak[self.precision] for part, peak in PEAKS.items() if part in name), None)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def utilisation(
    meter: Meter, jobs: Mapping[str, Callable[[], Any]], seconds: Mapping[str, float]
) -> dict[str, Any]:
    """How much of the machine each job uses; every job runs once more, to be counted.

    Returns:
        By job: tflop, tflop_per_s, and its share of a large matrix product's rate (`of_gemm`) and of the
        data sheet's peak (`of_peak`, None where unknown).
    """
    best, peak = meter.best_flop_per_s(), meter.peak_flop_per_s()
    found: dict[str, Any] = {"gemm_tflop_per_s": best / 1e12, "peak_tflop_per_s": peak and peak / 1e12}
    for name, run in jobs.items():
        flop = meter.flop(run)
        rate = flop / seconds[name]
        found[name] = {
            "tflop": flop / 1e12,
            "tflop_per_s": rate / 1e12,
            "of_gemm": rate / best,
            "of_peak": peak and rate / peak,
        }
    return found
