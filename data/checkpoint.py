"""The state of a training run on disk, so that an interrupted run goes on where it was."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracts.whole_files import written_whole


def resume(
    checkpoint: Path, net: Any, averaged: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, float]]]:
    """Fill in what a checkpoint holds; returns (steps done, curve), (0, []) if there is none."""
    if not checkpoint.exists():
        return 0, []
    saved = torch.load(checkpoint, weights_only=True)
    net.load_state_dict(saved["net"])
    for name, value in saved["averaged"].items():
        averaged[name].copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["curve"]


def save(
    checkpoint: Path,
    net: Any,
    averaged: dict[str, Tensor],
    optimizer: Any,
    step: int,
    curve: list[dict[str, float]],
) -> None:
    """Write a checkpoint, whole or not at all."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "net": net.state_dict(),
        "averaged": averaged,
        "optimizer": optimizer.state_dict(),
        "step": step,
        "curve": curve,
    }
    with written_whole(checkpoint) as partial:
        torch.save(state, partial)
