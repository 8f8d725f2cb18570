"""An AdaIR-shaped network (Cui et al., ICLR 2025, arXiv 2403.14614): Restormer with frequency blocks.

After the bottleneck and the two decoder levels above it, the input image is split into a low and a high
frequency band, which modulate each other and then the features.

Two things work in the published network other than the paper tells.  Published weights were trained so,
and both are kept:

* The half-sides of the low band's rectangle are floor(side / 128) times a predicted ratio in (0, 1),
  truncated to an integer.  For features under 256 positions a side (images under 512 pixels, for the
  finest of the three blocks) this is 0, unless the ratio rounds to 1: the low band is empty, and
  query and temperature of its attention decide nothing.
* Through the truncation no gradient reaches the predictor of the ratio (`rate_conv`): it keeps its
  initial weights.

A third is a matter of training: `para1` starts at zero, so a new network is Restormer, and its first step
moves nothing else of the frequency blocks.

The published checkpoint holds 28,784,824 parameters, 26,126,644 of them outside the frequency blocks.  Two
convolutions of each block, `conv` and `score_gen`, are never run; they are not built here, which leaves
28,766,086.  24,360 of these are of `rate_conv`: they run, get no gradient, and decide nothing in small
images.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families.restoration_blocks import (
    Backbone,
    BackboneConfig,
    channel_attention,
    check_heads,
    conv1x1,
    conv3x3,
    depthwise3x3,
)
from unlearning.families.restoration_stages import Activations
from unlearning.families.stages import Stage

# Positions of a side for each position that the low band's half-side can have.
BAND_UNIT = 128
# Channels for each hidden channel of the channel gate, and of the predictor of the ratio.
GATE_REDUCTION, RATIO_REDUCTION = 16, 8


@dataclass(frozen=True)
class AdaIRConfig(BackboneConfig):
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        frequency_heads: attention heads of the frequency blocks.
    """

    frequency_heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels(2) < GATE_REDUCTION:
            raise ModelError(f"width must be at least {GATE_REDUCTION // 2}, got {self.width}")
        for level in range(2, self.n_levels + 1):
            check_heads(self.frequency_heads, self.channels(level))


class CrossAttention(nn.Module):
    """Channel attention of one map (queries) over another (keys and values)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = conv1x1(channels, channels)
        self.q_dwconv = depthwise3x3(channels)
        self.kv = conv1x1(channels, 2 * channels)
        self.kv_dwconv = depthwise3x3(2 * channels)
        self.project_out = conv1x1(channels, channels)

    def forward(self, asks: Tensor, answers: Tensor) -> Tensor:
        """Two maps (n, C, H, W) to one."""
        query = self.q_dwconv(self.q(asks))
        key, value = self.kv_dwconv(self.kv(answers)).chunk(2, dim=1)
        out: Tensor = self.project_out(channel_attention(query, key, value, self.temperature))
        return out


class FrequencyModulation(nn.Module):
    """FMoM (AdaIR, section 3.3): where the high band is strong gates the low one, which channels of the
    low band are gates the high one."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // GATE_REDUCTION
        where = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        which = nn.Sequential(conv1x1(channels, hidden), nn.ReLU(), conv1x1(hidden, channels))
        self.SpatialGate = nn.Sequential(OrderedDict(spatial=where))
        self.ChannelGate = nn.Sequential(OrderedDict(mlp=which))
        self.proj = nn.Conv2d(channels, channels, 1)  # with a bias

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Both bands (n, C, H, W) to one map of that shape."""
        strength = torch.cat([high.amax(dim=1, keepdim=True), high.mean(dim=1, keepdim=True)], dim=1)
        where = self.SpatialGate(strength).sigmoid()
        peak, mean = low.amax(dim=(2, 3), keepdim=True), low.mean(dim=(2, 3), keepdim=True)
        which = (self.ChannelGate(peak) + self.ChannelGate(mean)).sigmoid()
        out: Tensor = self.proj(low * where + high * which)
        return out


class FrequencyBlock(nn.Module):
    """Adaptive frequency learning block, AFLB (AdaIR, section 3): bands of the image guide the features."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        hidden = channels // RATIO_REDUCTION
        self.conv1 = conv3x3(3, channels)
        self.rate_conv = nn.Sequential(conv1x1(channels, hidden), nn.GELU(), conv1x1(hidden, 2))
        # The checkpoint's "l" asks with the high band, and "h" with the low one.
        self.channel_cross_l = CrossAttention(channels, heads)
        self.channel_cross_h = CrossAttention(channels, heads)
        self.frequency_refine = FrequencyModulation(channels)
        self.channel_cross_agg = CrossAttention(channels, heads)
        self.para1 = nn.Parameter(torch.zeros(channels, 1, 1))
        self.para2 = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, image: Tensor, features: Tensor) -> Tensor:
        """Image (n, 3, ., .) and features (n, C, H, W) to features (n, C, H, W)."""
        embedded = self.conv1(functional.interpolate(image, features.shape[-2:], mode="bilinear"))
        low, high = bands(embedded, self.half_sides(embedded))
        high = self.channel_cross_l(high, features)
        low = self.channel_cross_h(low, features)
        guided = self.channel_cross_agg(features, self.frequency_refine(low, high))
        out: Tensor = guided * self.para1 + features * self.para2
        return out

    @torch.no_grad()
    def half_sides(self, embedded: Tensor) -> Tensor:
        """(n, 2) integers, half the height and width of the low band of maps (n, C, H, W)."""
        ratio: Tensor = self.rate_conv(embedded.mean(dim=(2, 3), keepdim=True)).sigmoid().flatten(1)
        most = ratio.new_tensor([side // BAND_UNIT for side in embedded.shape[-2:]])
        return (most * ratio).int()


def bands(x: Tensor, half_sides: Tensor) -> tuple[Tensor, Tensor]:
    """Magnitudes of the low and high frequency band of maps.

    Args:
        x: (n, C, H, W).
        half_sides: (n, 2); the low band has the frequencies -half to half - 1 of both axes.

    Returns:
        Low and high band, both (n, C, H, W).
    """
    inside = []
    for side, half in zip(x.shape[-2:], half_sides[:, :, None].unbind(dim=1), strict=True):
        # The frequency of each coefficient of a transform, negative ones in its second half.
        frequency = (torch.arange(side, device=x.device) + side // 2) % side - side // 2
        inside.append((frequency >= -half) & (frequency < half))
    rows, columns = inside
    kept = torch.fft.fft2(x) * (rows[:, None, :, None] & columns[:, None, None, :])
    low = torch.fft.ifft2(kept)  # complex: the band holds -half, but not half
    return low.abs(), (x - low).abs()


class AdaIR(Backbone):
    """The network; `state_dict` has the names of the published checkpoint, without what is never run."""

    def __init__(self, config: AdaIRConfig) -> None:
        levels = range(1, config.n_levels)
        super().__init__(config, {level: config.channels(level + 1) for level in levels})
        for level in levels:
            block = FrequencyBlock(config.channels(level + 1), config.frequency_heads)
            self.add_module(self._name(level), block)

    def guidance(self, level: int) -> tuple[Stage[Activations], ...]:
        """One frequency block."""
        name = self._name(level)
        block = self.get_submodule(name)
        return (Stage((f"{name}.",), lambda at: replace(at, features=block(at.image, at.features))),)

    def _name(self, level: int) -> str:
        """The published blocks are numbered from the bottleneck up."""
        return f"fre{self.n_levels - level}"
