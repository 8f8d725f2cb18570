"""What PromptIR and AdaIR share: the blocks and the encoder-decoder of Restormer (arXiv 2111.09881).

Written from the papers.  Modules and weights have the names of the published checkpoints, so that
those load without renaming.  No convolution has a bias unless said so.

Shapes: n images, C channels, H x W positions, w width of the first level.  Level k = 1, 2, ... has
w * 2^(k-1) channels at 1 / 2^(k-1) of the resolution; the last level is the bottleneck ("latent").
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families.restoration_stages import Activations, on_features
from unlearning.families.stages import Stage


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the encoder-decoder; the defaults are the published ones.

    Attributes:
        width: channels of the first level.
        blocks: transformer blocks of each level; the decoder's levels have as many as the encoder's.
        refinement_blocks: transformer blocks after the decoder, at full resolution.
        heads: attention heads of each level.
        ffn_expansion: hidden over outer width of the feed-forward networks, rounded down.

    Raises:
        ModelError: the sizes do not make a network.
    """

    width: int = 48
    blocks: tuple[int, ...] = (4, 6, 6, 8)
    refinement_blocks: int = 4
    heads: tuple[int, ...] = (1, 2, 4, 8)
    ffn_expansion: float = 2.66

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.heads) or len(self.blocks) < 2:
            raise ModelError(
                f"blocks {list(self.blocks)} and heads {list(self.heads)} must name two or more levels alike"
            )
        counts = (self.width, *self.blocks, self.refinement_blocks, *self.heads)
        if min(counts) < 1 or not 1 <= self.width * self.ffn_expansion < inf:
            raise ModelError("width, blocks, refinement_blocks, heads and ffn_expansion must be positive")
        if self.width % 2:
            raise ModelError(f"width must be even, got {self.width}: half of it goes down a level")
        for level, heads in enumerate(self.heads, start=1):
            check_heads(heads, self.channels(level))

    @property
    def n_levels(self) -> int:
        """Levels, bottleneck included."""
        return len(self.blocks)

    def channels(self, level: int) -> int:
        """Channels of a level, 1 to `n_levels`."""
        return int(self.width * 2 ** (level - 1))


def check_heads(heads: int, channels: int) -> None:
    """Attention gives every head an equal share of the channels.

    Raises:
        ModelError: it cannot.
    """
    if heads < 1 or channels % heads:
        raise ModelError(f"{channels} channels cannot be shared out to {heads} attention heads")


def conv1x1(before: int, after: int) -> nn.Conv2d:
    """A linear map of the channels at each position."""
    return nn.Conv2d(before, after, 1, bias=False)


def conv3x3(before: int, after: int) -> nn.Conv2d:
    """A 3 x 3 convolution that keeps the resolution."""
    return nn.Conv2d(before, after, 3, padding=1, bias=False)


def depthwise3x3(channels: int) -> nn.Conv2d:
    """A 3 x 3 convolution of every channel by itself."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def channel_attention(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Attention between channels instead of positions (Restormer, equation 1): linear in H * W.

    Args:
        query: (n, C, H, W), like `key` and `value`; a head sees C / heads neighbouring channels.
        key: its cosines with the query, over all positions, are the scores.
        value: what is mixed.
        temperature: (heads, 1, 1) factor of the scores.
    """
    n, channels, height, width = value.shape
    shared = (n, len(temperature), channels // len(temperature), height * width)
    q, k, v = (x.reshape(shared) for x in (query, key, value))
    scores = functional.normalize(q, dim=-1) @ functional.normalize(k, dim=-1).transpose(-2, -1)
    return ((scores * temperature).softmax(dim=-1) @ v).reshape(value.shape)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position of (n, C, H, W), with gain and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same."""
        normed: Tensor = self.body(x.permute(0, 2, 3, 1))
        # Channels last, which this would leave them, the depthwise convolutions are a quarter slower.
        return normed.permute(0, 3, 1, 2).contiguous()


class SelfAttention(nn.Module):
    """Multi-Dconv head transposed attention, MDTA (Restormer, section 3.1)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = conv1x1(channels, 3 * channels)
        self.qkv_dwconv = depthwise3x3(3 * channels)
        self.project_out = conv1x1(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same."""
        query, key, value = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        out: Tensor = self.project_out(channel_attention(query, key, value, self.temperature))
        return out


class GatedFeedForward(nn.Module):
    """Gated-Dconv feed-forward network, GDFN (Restormer, section 3.2)."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = conv1x1(channels, 2 * hidden)
        self.dwconv = depthwise3x3(2 * hidden)
        self.project_out = conv1x1(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same."""
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        out: Tensor = self.project_out(functional.gelu(gate) * value)
        return out


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on normalised features and added to them."""

    def __init__(self, channels: int, heads: int, ffn_expansion: float) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.attn = SelfAttention(channels, heads)
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedFeedForward(channels, ffn_expansion)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W) to the same."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.ffn(self.norm2(x))
        return out


class Backbone(nn.Module, ABC):
    """Restormer's encoder-decoder; what guides its decoder (prompts, frequency bands) is the subclass's.

    Args:
        config: sizes.
        guided: channels that the guidance of each level (1 to `n_levels` - 1) leaves.
    """

    def __init__(self, config: BackboneConfig, guided: dict[int, int]) -> None:
        super().__init__()
        self.n_levels, channels = config.n_levels, config.channels

        def blocks(n: int, width: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(width, heads, config.ffn_expansion) for _ in range(n)))

        self.patch_embed = nn.Sequential(OrderedDict(proj=conv3x3(3, config.width)))
        for level in range(1, self.n_levels):
            width = channels(level)
            encoder = blocks(config.blocks[level - 1], width, config.heads[level - 1])
            halve = nn.Sequential(conv3x3(width, width // 2), nn.PixelUnshuffle(2))
            self.add_module(f"encoder_level{level}", encoder)
            self.add_module(f"down{level}_{level + 1}", nn.Sequential(OrderedDict(body=halve)))
        self.latent = blocks(config.blocks[-1], channels(self.n_levels), config.heads[-1])
        for level in range(self.n_levels - 1, 0, -1):
            double = nn.Sequential(conv3x3(guided[level], 2 * guided[level]), nn.PixelShuffle(2))
            self.add_module(f"up{level + 1}_{level}", nn.Sequential(OrderedDict(body=double)))
            # The first level, and the refinement, keep the features and the skip side by side.
            width = guided[level] // 2 + channels(level)
            if level > 1:
                self.add_module(f"reduce_chan_level{level}", conv1x1(width, channels(level)))
                width = channels(level)
            decoder = blocks(config.blocks[level - 1], width, config.heads[level - 1])
            self.add_module(f"decoder_level{level}", decoder)
        self.refinement = blocks(config.refinement_blocks, width, config.heads[0])
        self.output = conv3x3(width, 3)

    @abstractmethod
    def guidance(self, level: int) -> tuple[Stage[Activations], ...]:
        """Stages between the features of level + 1 and the step up to `level`."""

    @property
    def stride(self) -> int:
        """Pixels to a position of the bottleneck; inputs are padded to multiples of it."""
        return int(2 ** (self.n_levels - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (n, 3, h, w), values 0 to 1, to restored ones, which are not clipped; differentiable."""
        at = Activations.of(pixels, self.stride)
        for stage in self.stages():
            at = stage.run(at)
        return at.features

    def stages(self) -> tuple[Stage[Activations], ...]:
        """The forward pass, one transformer block or change of resolution a stage.

        Made anew at each call: kept as an attribute, a copied network would run its original's stages.
        """
        stages = [on_features(("patch_embed.",), self.patch_embed)]
        for level in range(1, self.n_levels):
            stages += [*self._blocks(f"encoder_level{level}"), self._down(level)]
        stages += self._blocks("latent")
        for level in range(self.n_levels - 1, 0, -1):
            stages += [*self.guidance(level), self._up(level), *self._blocks(f"decoder_level{level}")]
        return (*stages, *self._blocks("refinement"), Stage(("output.",), self._residual))

    def _blocks(self, name: str) -> list[Stage[Activations]]:
        return [on_features((f"{name}.{i}.",), b) for i, b in self.get_submodule(name).named_children()]

    def _down(self, level: int) -> Stage[Activations]:
        down = self.get_submodule(f"down{level}_{level + 1}")
        return Stage(
            (f"down{level}_{level + 1}.",),
            lambda at: replace(at, features=down(at.features), skips=(*at.skips, at.features)),
        )

    def _up(self, level: int) -> Stage[Activations]:
        up, reduce = f"up{level + 1}_{level}", f"reduce_chan_level{level}"
        enlarge = self.get_submodule(up)
        mix = self.get_submodule(reduce) if level > 1 else nn.Identity()

        def run(at: Activations) -> Activations:
            joined = torch.cat([enlarge(at.features), at.skips[-1]], dim=1)
            return replace(at, features=mix(joined), skips=at.skips[:-1])

        return Stage((f"{up}.", f"{reduce}."), run)

    def _residual(self, at: Activations) -> Activations:
        height, width = at.size
        return replace(at, features=(self.output(at.features) + at.image)[..., :height, :width])
