"""The precision that reference models are trained in."""

import torch

# Of x86, x86 and ARM.  AVX-512 alone is not enough: the first processors with it emulate bfloat16.
NATIVE = ("avx512_bf16", "amx_bf16", "bf16")


def half_where_native() -> torch.autocast:
    """bfloat16 for what autocast lowers, on a processor that has instructions for it; else fp32.

    Without them it is emulated, and a training step takes several times as long as in fp32.
    """
    able = torch.cpu.get_capabilities()
    return torch.autocast("cpu", torch.bfloat16, enabled=any(able.get(name, False) for name in NATIVE))
