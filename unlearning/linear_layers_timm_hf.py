"""The linear layers of pretrained towers (`families.clip_timm_hf`) that an erasure can be folded into.

Of an EfficientNet the 1x1 convolutions, whose constant goes to the BatchNorm after them, and the
projection; of a BERT the values, the joined heads, both layers of the MLP, and the projection.  Every
token counts: the feature is their mean.  Depthwise convolutions see an input through several weights.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from unlearning.linear_layers import LinearLayer, argument, pixels


def layers_of(net: Any) -> list[LinearLayer]:
    """Every layer that an erasure can be folded into exactly, vision tower first, in order of their use."""
    trunk = net.visual.trunk
    layers: list[LinearLayer] = []
    for i, group in enumerate(trunk.blocks):
        for j, block in enumerate(group):
            layers += _pointwise(f"visual.trunk.blocks.{i}.{j}", block)
    layers += _convolution("visual.trunk", "conv_head", "bn2", trunk)
    layers.append(_linear("visual.head.proj", net.visual.head.proj, alone=True))
    for i, layer in enumerate(net.text.transformer.encoder.layer):
        at = f"text.transformer.encoder.layer.{i}"
        for name in ("attention.self.value", "attention.output.dense", "intermediate.dense", "output.dense"):
            layers.append(_linear(f"{at}.{name}", layer.get_submodule(name)))
    layers.append(_linear("text.proj", net.text.proj, alone=True))
    return layers


def _pointwise(at: str, block: Any) -> Iterator[LinearLayer]:
    """The 1x1 convolutions of a block; `conv_pwl` is the one that narrows an inverted residual."""
    narrows = hasattr(block, "conv_pwl")
    yield from _convolution(at, "conv_pw", "bn1" if narrows else "bn2", block)
    yield from _convolution(at, "conv_pwl", "bn3" if narrows and hasattr(block, "bn3") else "bn2", block)


def _convolution(at: str, name: str, norm_name: str, owner: Any) -> Iterator[LinearLayer]:
    conv, norm = getattr(owner, name, None), getattr(owner, norm_name, None)
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != (1, 1) or not isinstance(norm, nn.BatchNorm2d):
        return
    yield LinearLayer(f"{at}.{name}.weight", f"{at}.{norm_name}.bias", conv, pixels, norm=norm)


def _linear(name: str, module: nn.Linear, *, alone: bool = False) -> LinearLayer:
    bias = None if module.bias is None else f"{name}.bias"
    return LinearLayer(f"{name}.weight", bias, module, argument, alone=alone)
