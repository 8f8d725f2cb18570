"""The diffusion family: a UNet that draws what CLIP text towers say, as files and as functions.

SLUG and its kin edit the text towers of such a model (Stable Diffusion 1.5 and 2.1: one; SDXL: two), or
the matrices through which the UNet reads texts; gradients come from the denoising loss
(`diffusion_request`), or, the paper's way, from the CLIP that a text tower was taken from
(`diffusion_clip`), where the CLIP's vision tower is at hand: `model.clip` is the first one as a `ClipModel`.

A model folder holds `weights.safetensors`, with prefixes `clip.`, `clip2.`, `unet.` and `vae.`,
`config.json` (`diffusion_config`) and, where the tokenizer is not open_clip's own, `bpe.txt.gz`.
`diffusion_hf` reads and writes diffusers' layout.  No file is ever unpickled.  Everything is in
`eval()` mode and in fp32.

Shapes: N pictures or texts, L tokens, W width of all towers together, P of pooled features,
C x h x w latents, S side in pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import InputError, ModelError
from contracts.values import Objective, Tower
from unlearning.families import CandidateLayer, clip_config, diffusion_config
from unlearning.families.clip import Images
from unlearning.families.config import (
    CONFIG,
    check_weights,
    read_beside,
    read_config,
    read_weights,
    write_folder,
)
from unlearning.families.diffusion_codec import build_codec
from unlearning.families.diffusion_text import ConditioningClip, TextEncoder

CLIPS = ("clip", "clip2")
VOCABULARY = clip_config.VOCABULARIES["simple"]
FAMILY = diffusion_config.FAMILY
TOWERS: tuple[Tower, ...] = ("text", "unet")
OBJECTIVES: tuple[Objective, ...] = ("unet", "clip")
# The matrices of a UNet through which texts enter: keys and values of cross-attention (UCE, ESD-x and others
# edit these), and what makes one embedding of a whole text, where there is such a thing.
CROSS_ATTENTION = (".attn2.to_k.weight", ".attn2.to_v.weight")
TEXT_EMBEDDING = "add_embedding."


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the UNet is told of N texts.

    Attributes:
        states: (N, L, W) token states; of two towers side by side.
        pooled: (N, P) where the UNet reads a pooled feature (SDXL).
    """

    states: Tensor
    pooled: Tensor | None = None

    def __getitem__(self, rows: Any) -> "Conditioning":
        return Conditioning(self.states[rows], None if self.pooled is None else self.pooled[rows])

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """The rows of all parts."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(torch.cat([part.states for part in parts]), torch.cat(pooled) if pooled else None)


class DiffusionModel:
    """A text-to-image model: load and save, condition, denoise, name the weights a method may edit.

    Args:
        config: content of `config.json`.
        weights: state dict with prefixes, floating-point tensors in fp32.
        vocabulary: bytes of the vocabulary file of all text towers, or None for open_clip's own.
        device: where the weights live.

    Raises:
        ModelError: configuration and weights do not make a finite model of this family.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        vocabulary: bytes | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        diffusion_config.check_config(config)
        self.config, self.device, self.vocabulary = config, torch.device(device), vocabulary
        self.sampling = diffusion_config.sampling(config)
        self.scheduler: Any = diffusion_config.build_scheduler(config["scheduler"])
        self.codec = build_codec(config["codec"])
        parts = _by_prefix(weights)
        try:
            self.encoders = tuple(
                TextEncoder(clip, parts.get(name, {}), vocabulary, device)
                for name, clip in zip(CLIPS, config["clips"], strict=False)
            )
        except InputError as error:
            raise ModelError(str(error)) from None
        nets: dict[str, nn.Module] = {n: e.net for n, e in zip(CLIPS, self.encoders, strict=False)}
        nets["unet"] = diffusion_config.build_unet(config["unet"])
        if self.codec.net is not None:
            nets["vae"] = self.codec.net
        self.net = nn.ModuleDict(nets)
        check_weights(self.net.state_dict(), weights)
        self.net.load_state_dict(weights)
        self.net.to(self.device).eval().requires_grad_(False)
        self.unet: Any = nets["unet"]
        self.parameters: dict[str, nn.Parameter] = dict(self.net.named_parameters())

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "DiffusionModel":
        """Read a model folder; its digests are the registry's business and not checked here.

        Raises:
            ModelError: a file is missing or unreadable, the family is another one, or the weights
                do not fit the configuration or are not finite (the message names the tensor).
        """
        config = read_config(folder / CONFIG, diffusion_config.FAMILY)
        diffusion_config.check_config(config)
        weights = read_weights(folder)
        vocabulary = None
        if any(clip_config.vocabulary_file(clip) is not None for clip in config["clips"]):
            vocabulary = read_beside(folder, VOCABULARY)
        return cls(config, weights, vocabulary, device)

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, str]:
        """See `unlearning.families.config.write_folder`."""
        files = {} if self.vocabulary is None else {VOCABULARY: self.vocabulary}
        return write_folder(folder, self.config, self.net.state_dict(), dtype, files)

    @property
    def family(self) -> str:
        """What `config.json` and the registry call models of this kind."""
        return FAMILY

    @property
    def clip(self) -> ConditioningClip | None:
        """The first text tower inside its CLIP; None without a vision tower."""
        return self.encoders[0].clip

    @property
    def image_size(self) -> int:
        """Side in pixels of the pictures that the model draws."""
        return self.sampling.size

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every weight that a method may edit, all of them used by what the UNet makes of a text."""
        text = [
            CandidateLayer(f"{part}.{layer.name}", layer.tower, layer.shape, layer.n_params)
            for part, encoder in zip(CLIPS, self.encoders, strict=False)
            for layer in encoder.candidates()
        ]
        unet = [
            CandidateLayer(f"unet.{name}", "unet", tuple(weight.shape), weight.numel())
            for name, weight in self.unet.named_parameters()
            if name.endswith(CROSS_ATTENTION)
            or (name.startswith(TEXT_EMBEDDING) and name.endswith(".weight") and weight.ndim == 2)
        ]
        return (*text, *unet)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids (N, L), one tensor for each text tower."""
        return tuple(encoder.tokenize(texts) for encoder in self.encoders)

    def conditioning(self, tokens: Sequence[Tensor]) -> Conditioning:
        """What the UNet reads of token ids (N, L), one tensor for each tower; differentiable."""
        read = [encoder(own) for encoder, own in zip(self.encoders, tokens, strict=True)]
        pooled = [one for _, one in read if one is not None]
        return Conditioning(torch.cat([states for states, _ in read], dim=-1), pooled[-1] if pooled else None)

    @torch.no_grad()
    def unconditional(self, n: int) -> Conditioning:
        """What guidance leads away from, n times."""
        empty = self.conditioning(self.tokenize([""] * n))
        if self.sampling.unconditional == "empty":
            return empty
        pooled = None if empty.pooled is None else torch.zeros_like(empty.pooled)
        return Conditioning(torch.zeros_like(empty.states), pooled)

    def predict(self, latents: Tensor, timesteps: Tensor, told: Conditioning) -> Tensor:
        """The UNet's prediction (N, C, h, w) for noised latents at timesteps (N,); differentiable."""
        predicted: Tensor = self.unet(
            latents, timesteps, encoder_hidden_states=told.states, added_cond_kwargs=self.beside(told)
        ).sample
        return predicted

    def beside(self, told: Conditioning) -> dict[str, Tensor | None] | None:
        """What the UNet is told beside token states: of SDXL the pooled feature and the picture's sizes."""
        if self.unet.config["addition_embed_type"] != "text_time":
            return None
        # As in training: the original size, no crop, the size that is drawn.
        side = float(self.sampling.size)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=told.states.device)
        return {"text_embeds": told.pooled, "time_ids": sizes.repeat(len(told.states), 1)}

    def encode(self, images: Images) -> Tensor:
        """uint8 images (N, H, W, 3) to latents (N, C, h, w) on the model's device.

        Raises:
            InputError: the array has another shape or type.
        """
        batch = torch.as_tensor(images)
        if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != torch.uint8:
            raise InputError(f"images must be uint8 (N, H, W, 3), got {batch.dtype} {tuple(batch.shape)}")
        pixels, size = batch.permute(0, 3, 1, 2), (self.sampling.size, self.sampling.size)
        if pixels.shape[-2:] != size:
            pixels = functional.interpolate(pixels.cpu(), size=size, mode="bicubic", antialias=True)
        return self.codec.encode(pixels.to(self.device).float() / 127.5 - 1.0)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Latents (N, C, h, w) to uint8 images (N, S, S, 3)."""
        pixels = (self.codec.decode(latents).clamp(-1, 1) + 1.0) * 127.5
        images: NDArray[np.uint8] = pixels.round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return images


def _by_prefix(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors by what stands before the first dot of their names."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    return parts


def load(folder: Path, device: torch.device | str = "cpu") -> DiffusionModel:
    """See `DiffusionModel.load`."""
    return DiffusionModel.load(folder, device)


def tower_of(layer: str) -> Tower:
    """Which side a weight, named as in `DiffusionModel.parameters`, belongs to: "text" or "unet"."""
    return "unet" if layer.startswith("unet.") else "text"
