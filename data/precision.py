"""The precision that reference models are trained in."""

import torch


def half_where_native() -> torch.autocast:
    """bfloat16 for what autocast lowers, on a processor that has instructions for it; else fp32.

    Without them it is emulated, and a training step takes several times as long as in fp32.
    """
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())
