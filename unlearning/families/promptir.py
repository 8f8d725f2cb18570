"""A PromptIR-shaped network (Potlapalli et al., NeurIPS 2023, arXiv 2306.13090): Restormer with prompts.

Before each step up, learnt prompt components, mixed by what the features look like, are appended to
the features: the network tells degradations apart without being told which one it sees.

The published checkpoint holds 35,592,263 parameters.  Six 1 x 1 convolutions of it (215,296 parameters)
are never run; they are not built here, which leaves 35,376,967, every one of which decides the output.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families.restoration_blocks import (
    Backbone,
    BackboneConfig,
    TransformerBlock,
    check_heads,
    conv1x1,
    conv3x3,
)
from unlearning.families.restoration_stages import Activations, on_features
from unlearning.families.stages import Stage


@dataclass(frozen=True)
class PromptIRConfig(BackboneConfig):
    """Sizes of the network; the defaults are the published ones.

    Attributes:
        prompt_components: learnt prompts of each level, which are mixed.
        prompt_channels: channels of the prompts on the way up to level 1, 2, ...
        prompt_sizes: side in positions of the same prompts, before they are resized to the features.
        prompt_heads: attention heads of the block that merges features and prompt.
    """

    prompt_components: int = 5
    prompt_channels: tuple[int, ...] = (64, 128, 320)
    prompt_sizes: tuple[int, ...] = (64, 32, 16)
    prompt_heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.prompt_channels) == len(self.prompt_sizes) == self.n_levels - 1:
            raise ModelError(
                f"{self.n_levels} levels need {self.n_levels - 1} prompt_channels and prompt_sizes, "
                f"got {list(self.prompt_channels)} and {list(self.prompt_sizes)}"
            )
        if min(self.prompt_components, *self.prompt_channels, *self.prompt_sizes) < 1:
            raise ModelError("prompt_components, prompt_channels and prompt_sizes must be positive")
        for level, more in enumerate(self.prompt_channels, start=1):
            check_heads(self.prompt_heads, self.channels(level + 1) + more)

    def guided(self, level: int) -> int:
        """Channels after the merge with the prompt; at the bottleneck already those of the next level."""
        return self.channels(level if level == self.n_levels - 1 else level + 1)


class Prompt(nn.Module):
    """Prompt generation (PromptIR, section 3.1.1): components, weighted by the features' mean, resized."""

    def __init__(self, components: int, channels: int, size: int, features: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, components, channels, size, size))
        self.linear_layer = nn.Linear(features, components)
        self.conv3x3 = conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Features (n, C, H, W) to their prompt (n, channels, H, W)."""
        shares = self.linear_layer(x.mean(dim=(2, 3))).softmax(dim=-1)
        mixed = torch.einsum("nk,kchw->nchw", shares, self.prompt_param[0])
        prompt: Tensor = self.conv3x3(functional.interpolate(mixed, x.shape[-2:], mode="bilinear"))
        return prompt


class PromptIR(Backbone):
    """The network; `state_dict` has the names of the published checkpoint, without what is never run."""

    def __init__(self, config: PromptIRConfig) -> None:
        levels = range(1, config.n_levels)
        super().__init__(config, {level: config.guided(level) for level in levels})
        for level in levels:
            before, more = config.channels(level + 1), config.prompt_channels[level - 1]
            prompt = Prompt(config.prompt_components, more, config.prompt_sizes[level - 1], before)
            merge = TransformerBlock(before + more, config.prompt_heads, config.ffn_expansion)
            self.add_module(f"prompt{level}", prompt)
            self.add_module(f"noise_level{level}", merge)
            self.add_module(f"reduce_noise_level{level}", conv1x1(before + more, config.guided(level)))

    def guidance(self, level: int) -> tuple[Stage[Activations], ...]:
        """Append the prompt, merge, reduce."""
        prompt = self.get_submodule(f"prompt{level}")
        merge, reduce = f"noise_level{level}", f"reduce_noise_level{level}"
        return (
            on_features((f"prompt{level}.",), lambda x: torch.cat([x, prompt(x)], dim=1)),
            on_features((f"{merge}.",), self.get_submodule(merge)),
            on_features((f"{reduce}.",), self.get_submodule(reduce)),
        )
