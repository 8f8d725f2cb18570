"""The image-restoration family: PromptIR- and AdaIR-shaped networks, as files and as functions.

A model folder holds `weights.safetensors` and `config.json`:

    {"schema": 1, "family": "restoration", "architecture": "promptir" | "adair", "net": {"width": 48, ...}}

where `net` holds the fields of `PromptIRConfig` or `AdaIRConfig` that differ from the published sizes.
No file is ever unpickled.  The model is always in `eval()` mode and in fp32; weights may be stored in
half precision, and are widened, which is exact, when they are read.

Weight names are those of the published checkpoints.

Shapes: N images, H x W pixels.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contracts.canonical import from_plain, to_plain
from contracts.errors import InputError, ModelError
from contracts.values import Objective, Tower
from unlearning.families import CandidateLayer
from unlearning.families.adair import AdaIR, AdaIRConfig
from unlearning.families.clip import Images
from unlearning.families.config import (
    CONFIG,
    check_weights,
    only,
    read_config,
    read_weights,
    section,
    write_folder,
)
from unlearning.families.promptir import PromptIR, PromptIRConfig
from unlearning.families.restoration_blocks import Backbone, BackboneConfig
from unlearning.families.restoration_stages import Activations, StagedNet
from unlearning.inplace import requiring_grad

FAMILY = "restoration"
FIELDS = ("schema", "family", "architecture", "net")
TOWERS: tuple[Tower, ...] = ("net",)
OBJECTIVES: tuple[Objective, ...] = ()

ARCHITECTURES: Mapping[str, tuple[type[BackboneConfig], Callable[[Any], Backbone]]] = {
    "promptir": (PromptIRConfig, PromptIR),
    "adair": (AdaIRConfig, AdaIR),
}

# Matched anywhere in the name, as for CLIP.
EXCLUDED = ("bias",)

# Noise images that a candidate must be able to change: their number, and their side in pixels.
PROBES, PROBE_SIDE = 4, 32


class RestorationModel:
    """A restoration network: load and save, restore images, name the weights a method may edit.

    Args:
        config: content of `config.json`.
        weights: state dict under the published names, in fp32; copied.
        device: where the weights live.

    Raises:
        ModelError: configuration and weights do not make a finite model of this family.
    """

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device | str = "cpu"
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        with torch.device("meta"):
            self.net = build_network(config)
        check_weights(self.net.state_dict(), weights)
        self.net.to_empty(device=self.device).load_state_dict(weights)
        self.net.eval().requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = dict(self.net.named_parameters())

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "RestorationModel":
        """Read a model folder; its digests are the registry's business and not checked here.

        Raises:
            ModelError: a file is missing or unreadable, the family is another one, a field of the
                configuration is unknown, or the weights do not fit it or are not finite (the message
                names the field or tensor).
        """
        config = read_config(folder / CONFIG, FAMILY)
        only(config, FIELDS, CONFIG)
        weights = read_weights(folder)
        return cls(config, weights, device)

    @classmethod
    def initial(
        cls,
        architecture: str,
        options: Mapping[str, Any],
        seed: int,
        device: torch.device | str = "cpu",
    ) -> "RestorationModel":
        """A model with initial weights, to be trained; the caller's random generators do not move.

        Args:
            architecture: a key of `ARCHITECTURES`.
            options: sizes that differ from the published ones, as in the object `net`.
            seed: decides the weights.
            device: where the weights live.

        Raises:
            ModelError: the architecture or an option is unknown or unusable.
        """
        config = configuration(architecture, options)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, build_network(config).state_dict(), device)

    @classmethod
    def from_published(
        cls, architecture: str, checkpoint: Path, options: Mapping[str, Any] | None = None
    ) -> "RestorationModel":
        """Import a published checkpoint; see `unlearning.families.restoration_import.read_published`.

        Raises:
            ModelError: see there, and a tensor that is missing, mis-shaped or not finite.
        """
        from unlearning.families.restoration_import import read_published

        return cls(*read_published(architecture, checkpoint, options or {}))

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, str]:
        """See `unlearning.families.config.write_folder`."""
        return write_folder(folder, self.config, self.net.state_dict(), dtype)

    @property
    def family(self) -> str:
        """As `config.json` names it."""
        return FAMILY

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every weight a method may edit: not `EXCLUDED` by name, and one that decides the output.

        Which ones do is asked of autograd, with noise images and these weights: a gradient that is
        missing, or zero in every element, is one of a tensor that no output depends on.  That leaves
        out AdaIR's `rate_conv`, query and temperature of the attention on its empty low band (see
        `adair`; in images of 512 pixels and more they would count), and in an AdaIR that is not yet
        trained all of a frequency block but `para1` and `para2`.
        """
        named = {n: p for n, p in self.parameters.items() if not any(word in n for word in EXCLUDED)}
        draw = torch.Generator().manual_seed(0)
        probes, weighting = torch.rand(2, PROBES, 3, PROBE_SIDE, PROBE_SIDE, generator=draw).to(self.device)
        with requiring_grad(self.net, named):
            restored = self.forward(probes)
            grads = torch.autograd.grad(restored, list(named.values()), weighting, allow_unused=True)
        return tuple(
            CandidateLayer(name, "net", tuple(p.shape), p.numel())
            for (name, p), grad in zip(named.items(), grads, strict=True)
            if grad is not None and bool(grad.any())
        )

    def preprocess(self, images: Images) -> Tensor:
        """uint8 images (N, H, W, 3) to fp32 (N, 3, H, W), values 0 to 1, on the model's device.

        Raises:
            InputError: the array has another shape or type.
        """
        batch = torch.as_tensor(images)
        if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != torch.uint8:
            raise InputError(f"images must be uint8 (N, H, W, 3), got {batch.dtype} {tuple(batch.shape)}")
        return batch.to(self.device).permute(0, 3, 1, 2).contiguous().float() / 255.0

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, H, W) of any size, values 0 to 1, to restored ones, not clipped; differentiable."""
        restored: Tensor = self.net(pixels)
        return restored

    @torch.no_grad()
    def restore(self, images: Images, micro_batch: int = 16) -> Tensor:
        """uint8 images (N, H, W, 3), N >= 1, to restored ones (N, 3, H, W) in fp32, clipped to 0 to 1.

        Raises:
            InputError: the array has another shape or type.
        """
        parts = (images[start : start + micro_batch] for start in range(0, len(images), micro_batch))
        return torch.cat([self.forward(self.preprocess(part)).clamp(0.0, 1.0) for part in parts])

    def activations(self, pixels: Tensor) -> Activations:
        """Images (N, 3, H, W), values 0 to 1, as they enter the first stage."""
        return Activations.of(pixels, self.net.stride)

    def staged(self) -> StagedNet:
        """The network as a sequence of stages (`restoration_stages`)."""
        return StagedNet(self.net.stages())


load = RestorationModel.load


def configuration(architecture: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` of a network of the published sizes, except for `options`; every size is spelt out.

    Raises:
        ModelError: the architecture or an option is unknown or unusable.
    """
    sizes = to_plain(_sizes(architecture, options))
    return {"schema": 1, "family": FAMILY, "architecture": architecture, "net": sizes}


def build_network(config: Mapping[str, Any]) -> Backbone:
    """The network that a configuration describes, on torch's default device, with initial weights.

    Raises:
        ModelError: the architecture or an option is unknown or unusable.
    """
    architecture = config.get("architecture")
    sizes = _sizes(architecture, section(config, "net"))
    return ARCHITECTURES[str(architecture)][1](sizes)


def _sizes(architecture: Any, options: Mapping[str, Any]) -> BackboneConfig:
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"unknown restoration architecture {architecture!r}; known are {known}")
    try:
        return from_plain(ARCHITECTURES[architecture][0], options)
    except InputError as error:
        raise ModelError(str(error)) from None
