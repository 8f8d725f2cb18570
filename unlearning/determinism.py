"""Same plan, same inputs, same machine: same candidate digest."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def _fp32_products() -> Iterator[None]:
    """Products of fp32 matrices are computed in fp32 inside, also where a process allows less.

    torch keeps one precision for all and, set one by one, that of cuBLAS and of oneDNN.
    """
    onednn: Any = torch.backends.mkldnn  # its stubs lack `matmul`
    libraries = torch.backends.cuda.matmul, onednn.matmul
    each = [library.fp32_precision for library in libraries]
    try:
        common = torch.get_float32_matmul_precision()
    except RuntimeError:  # they were set one by one to something else: that is put back below
        common = "highest"
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(common)
        for library, precision in zip(libraries, each, strict=True):
            library.fp32_precision = precision


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Fixed seeds, thread count and deterministic fp32 kernels inside; everything as before after.

    The thread count is part of it because it decides the order of floating-point sums.  On CUDA,
    enter this before the first cuBLAS call of the process: its workspace is configured once.

    Args:
        seed: for the generators of Python, NumPy and torch.
        threads: torch's intra-op threads.
    """
    states = random.getstate(), np.random.get_state()
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    n_threads, workspace = torch.get_num_threads(), os.environ.get(CUBLAS_WORKSPACE)
    try:
        # TF32 would round the inputs of convolutions and of matrix products to 10 bits.
        with (
            _fp32_products(),
            torch.random.fork_rng(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            os.environ[CUBLAS_WORKSPACE] = ":4096:8"
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            torch.use_deterministic_algorithms(True)
            torch.set_num_threads(threads)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.set_num_threads(n_threads)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        else:
            os.environ[CUBLAS_WORKSPACE] = workspace
