"""A small restorer that has learned two degradations of drawn blocks, and the sets of a request to it."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from contracts.values import Method
from tests.unlearning.restoration_tiny import SIZES
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_request import Pairs, RestorationRequest

CLASSES = ("c-00000001", "c-00000002")  # darkened, noisy
DARK, NOISY = 0, 1
SIDE = 24
METHOD = Method(name="slug", towers=("net",), forget_at=1, forget_target=0.5, micro_batch=4)


def pairs(n: int, seed: int, classes: tuple[int, ...] = (DARK, NOISY)) -> Pairs:
    """n pictures of coloured blocks under each degradation."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(90, 256, (n * len(classes), SIDE // 8, SIDE // 8, 3))
    clean = blocks.repeat(8, axis=1).repeat(8, axis=2)
    labels = np.tile(np.array(classes), n)
    noise = rng.normal(0, 40, clean.shape)
    degraded = np.where((labels == DARK)[:, None, None, None], 0.5 * clean, clean + noise)
    return Pairs(_bytes(degraded), _bytes(clean), labels)


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@cache
def trained_weights(architecture: str) -> dict[str, torch.Tensor]:
    model = RestorationModel.initial(architecture, SIZES[architecture], 0)
    shown = pairs(24, seed=1)
    degraded, clean = model.preprocess(shown.degraded), model.preprocess(shown.clean)
    model.net.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(80):
        rows = torch.randperm(len(shown), generator=order)[:8]
        loss = functional.l1_loss(model.forward(degraded[rows]), clean[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: tensor.detach().clone() for name, tensor in model.net.state_dict().items()}


def trained(architecture: str = "promptir") -> RestorationModel:
    """A model of its own each time."""
    with torch.random.fork_rng():
        config = RestorationModel.initial(architecture, SIZES[architecture], 0).config
    return RestorationModel(config, trained_weights(architecture))


@dataclass(frozen=True)
class Sets:
    """What a request is made of."""

    forget: Pairs
    retain: Pairs
    search: Pairs

    def request(self, seed: int = 0) -> RestorationRequest:
        return RestorationRequest(CLASSES, (DARK,), self.forget, self.retain, self.search, seed)


def sets() -> Sets:
    """Forget the darkness, keep the noise; 6, 8 and 2 x 5 pairs."""
    return Sets(pairs(6, 2, (DARK,)), pairs(8, 3, (NOISY,)), pairs(5, 4))
