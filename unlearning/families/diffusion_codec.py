"""What a picture becomes before it is noised, and back: a VAE's latents, or squares of pixels.

Shapes: N pictures of S x S pixels; C x h x w latents.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families.diffusion_config import build_vae


class Codec(Protocol):
    """Pictures in -1..1 to latents of about unit variance, and back."""

    net: nn.Module | None

    def shape(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of a picture of `size` x `size` pixels."""

    def encode(self, pictures: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, C, h, w)."""

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 3, S, S)."""


def build_codec(options: Mapping[str, Any]) -> Codec:
    """The codec of a configuration.

    Raises:
        ModelError: its kind is unknown, or its options are.
    """
    kind, rest = options.get("kind"), {k: v for k, v in options.items() if k != "kind"}
    if kind == "patches" and set(rest) == {"side"} and isinstance(rest["side"], int) and rest["side"] > 0:
        return Patches(rest["side"])
    if kind == "vae" and set(rest) == {"config"}:
        return Vae(build_vae(rest["config"]))
    raise ModelError(f"codec: kind {kind!r} with {sorted(rest)} is not supported")


class Patches:
    """Squares of side x side pixels as channels: no weights, nothing lost, side^2 fewer positions."""

    net: nn.Module | None = None

    def __init__(self, side: int) -> None:
        self._side = side

    def shape(self, size: int) -> tuple[int, int, int]:
        """See `Codec`."""
        return 3 * self._side**2, size // self._side, size // self._side

    def encode(self, pictures: Tensor) -> Tensor:
        """See `Codec`."""
        return functional.pixel_unshuffle(pictures, self._side)

    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec`."""
        return functional.pixel_shuffle(latents, self._side)


class Vae:
    """diffusers' `AutoencoderKL`: the mean of what it makes of a picture, in units of its scaling factor."""

    def __init__(self, net: Any) -> None:
        self.net: Any = net
        self._factor = 2 ** (len(net.config["block_out_channels"]) - 1)

    def shape(self, size: int) -> tuple[int, int, int]:
        """See `Codec`."""
        return self.net.config["latent_channels"], size // self._factor, size // self._factor

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> Tensor:
        """See `Codec`; the mean, not a draw, so that a gradient depends on the seed's noise alone."""
        mean = self.net.encode(pictures).latent_dist.mean
        latents: Tensor = (mean - self._shift) * self.net.config["scaling_factor"]
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `Codec`."""
        pictures: Tensor = self.net.decode(latents / self.net.config["scaling_factor"] + self._shift).sample
        return pictures

    @property
    def _shift(self) -> float:
        return float(self.net.config.get("shift_factor") or 0.0)
