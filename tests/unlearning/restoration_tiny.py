"""Restoration networks of width 8 with one block a level, and photos of noise for them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unlearning.families.restoration import RestorationModel

ARCHITECTURES = ("promptir", "adair")
SIZES: dict[str, dict[str, Any]] = {
    "promptir": {
        "width": 8,
        "blocks": [1, 1, 1, 1],
        "refinement_blocks": 1,
        "prompt_channels": [8, 16, 16],
        "prompt_sizes": [8, 4, 2],
    },
    "adair": {"width": 8, "blocks": [1, 1, 1, 1], "refinement_blocks": 1},
}
# What the published networks hold besides, and never run; sizes do not matter to whoever drops them.
NEVER_RUN = {
    "promptir": [
        *(f"chnl_reduce{level}.weight" for level in (1, 2, 3)),
        *(f"reduce_noise_channel_{level}.weight" for level in (1, 2, 3)),
    ],
    "adair": [
        f"fre{block}.{name}"
        for block in (1, 2, 3)
        for name in ("conv.weight", "score_gen.weight", "score_gen.bias")
    ],
}


def tiny(architecture: str, seed: int = 0) -> RestorationModel:
    """A model whose every weight was moved, as training does: new frequency blocks are switched off."""
    model = RestorationModel.initial(architecture, SIZES[architecture], seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters.values():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
    return model


def images(n: int = 2, height: int = 16, width: int = 24) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
