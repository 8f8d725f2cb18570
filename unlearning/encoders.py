"""How the encoders of a model run: precision, and what is kept for the backward pass.

Half precision goes no further than the encoders: features leave them in fp32, so that logits, losses
and sums of gradients are fp32.  Weights stay fp32 and autocast casts copies of them.

Activation checkpointing keeps the input of every residual block and computes the block again in the
backward pass (`unlearning.checkpointing`).
"""

import math
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError
from contracts.values import Tower
from unlearning.checkpointing import checkpointed
from unlearning.families.clip import ClipModel
from unlearning.inplace import requiring_grad


@dataclass(frozen=True)
class Compute:
    """How encoders run.

    Attributes:
        autocast: precision of their matrix products, or None for fp32 throughout.  Gradients that are small
            differences of large terms lose most: those of a well trained model's retain loss.
        checkpointing: whether residual blocks are computed again in the backward pass.
        loss_scale: with float16, factor on the loss of one item (one batch, for the retain loss) while
            it is differentiated, divided out again: gradients below 6e-5 would lose digits, and below
            6e-8 vanish.  A power of two, so that it is exact.

    Raises:
        InputError: another precision, or a scale that is no power of two.
    """

    autocast: torch.dtype | None = None
    checkpointing: bool = False
    loss_scale: float = 16.0

    def __post_init__(self) -> None:
        if self.autocast not in (None, torch.bfloat16, torch.float16):
            raise InputError(f"autocast must be bfloat16 or float16, got {self.autocast}")
        if self.loss_scale <= 0 or math.frexp(self.loss_scale)[0] != 0.5:
            raise InputError(f"loss_scale must be a power of two, got {self.loss_scale}")

    def scale(self, divisor: int = 1) -> float:
        """Factor on a scalar that was divided by `divisor`, the number of items or batches of a mean."""
        if self.autocast is not torch.float16:
            return 1.0
        return float(self.loss_scale * 2.0 ** math.ceil(math.log2(divisor)))


FULL_PRECISION = Compute()


@dataclass(frozen=True, eq=False)
class Encoders:
    """The encoders of a model: differentiable, normalised fp32 features."""

    model: ClipModel
    autocast: torch.dtype | None = None

    def image(self, images: Tensor) -> Tensor:
        """(N, D) features of uint8 images (N, H, W, 3)."""
        return self._run(self.model.image_features, self.model.preprocess(images))

    def text(self, tokens: Tensor) -> Tensor:
        """(N, D) features of token ids (N, L)."""
        return self._run(self.model.text_features, tokens)

    def by_tower(self, images: Tensor, tokens: Tensor) -> dict[Tower, Callable[[Tensor], Tensor]]:
        """From row numbers (n,) of a set to features (n, D), for both towers.

        Args:
            images: uint8 (N, H, W, 3).
            tokens: (N, L) token ids.
        """
        return {
            "vision": lambda rows: self.image(images[rows]),
            "text": lambda rows: self.text(tokens[rows]),
        }

    def _run(self, encode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        if self.autocast is None:
            return encode(batch)
        with torch.autocast(self.model.device.type, self.autocast):
            features = encode(batch)
        # Unit length in half precision is off by up to 2^-9, which a logit scale of 100 would show.
        return functional.normalize(features.float(), dim=-1)


@contextmanager
def encoders(model: ClipModel, layers: Container[str], compute: Compute) -> Iterator[Encoders]:
    """Encoders whose features carry a graph to the named layers and to no other weight."""
    with (
        requiring_grad(model.net, layers),
        checkpointed(model.net) if compute.checkpointing else nullcontext(),
    ):
        yield Encoders(model, compute.autocast)
