"""The CLIP family: open_clip models, as files and as functions.

Their towers are open_clip's own (a ViT or ModifiedResNet, and a causal text tower), or pretrained
ones of timm and transformers (`clip_timm_hf`).

A model folder holds `weights.safetensors`, `config.json` and, where the tokenizer is not
open_clip's own, its vocabulary (`bpe.txt.gz` or `tokenizer.json`).  No file is ever unpickled, and
no name in `config.json` can make open_clip, timm or transformers fetch something.  The model is
always in `eval()` mode and in fp32; weights may be stored in half precision, and are widened, which
is exact, when they are read.

Weight names are open_clip's.  A LayerNorm or BatchNorm gain is a weight like any other; a
BatchNorm's running statistics are buffers and never change.

Shapes: N items, H x W pixels, S input size, L context length, D embedding width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import InputError
from contracts.values import Objective, Tower
from unlearning.families import CandidateLayer, clip_config, clip_stages, clip_timm_hf, clip_timm_hf_stages
from unlearning.families.config import (
    CONFIG,
    check_weights,
    read_beside,
    read_config,
    read_weights,
    section,
    write_folder,
)
from unlearning.families.staged_tower import Batch, StagedTower
from unlearning.graph import reached
from unlearning.inplace import requiring_grad

# SLUG never edits these (arXiv 2407.11867, released code): matched anywhere in the name.
EXCLUDED = ("bias", "logit_scale", "position", "embedding")

TOWERS: tuple[Tower, ...] = ("vision", "text")
OBJECTIVES: tuple[Objective, ...] = ()

Images = NDArray[np.uint8] | Tensor


class ClipModel:
    """A CLIP model: load and save, tokenize, encode, name the weights a method may edit.

    Args:
        config: content of `config.json`.
        weights: open_clip state dict, floating-point tensors in fp32.
        vocabulary: bytes of the vocabulary file, or None for open_clip's own vocabulary.
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
        self.config = config
        self.device = torch.device(device)
        self.vocabulary = vocabulary
        self.net = clip_config.build_network(section(config, "model_cfg"))
        check_weights(self.net.state_dict(), weights)
        self.net.load_state_dict(weights)
        self.net.to(self.device).eval().requires_grad_(False)
        self.parameters: dict[str, nn.Parameter] = dict(self.net.named_parameters())
        self._preprocess = clip_config.Preprocess.from_config(config)
        self._tokenizer = clip_config.build_tokenizer(config, vocabulary, self.net)
        for tower in TOWERS:
            self.staged(tower)  # refuses towers of another kind

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "ClipModel":
        """Read a model folder; its digests are the registry's business and not checked here.

        Raises:
            ModelError: a file is missing or unreadable, the family is another one, a field of the
                configuration is unknown, or the weights do not fit it or are not finite (the message
                names the field or tensor).
        """
        config = read_config(folder / CONFIG, clip_config.FAMILY)
        clip_config.check_fields(config)
        weights = read_weights(folder)
        vocabulary, vocabulary_file = None, clip_config.vocabulary_file(config)
        if vocabulary_file is not None:
            vocabulary = read_beside(folder, vocabulary_file)
        return cls(config, weights, vocabulary, device)

    @classmethod
    def from_open_clip(
        cls, architecture: str, checkpoint: Path | None = None, pretrained: str | None = None
    ) -> "ClipModel":
        """Import a published model from a local checkpoint or by an open_clip `pretrained` tag.

        Raises:
            ModelError: see `unlearning.families.clip_import.read_open_clip`.
        """
        from unlearning.families.clip_import import read_open_clip

        return cls(*read_open_clip(architecture, checkpoint, pretrained))

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, str]:
        """See `unlearning.families.config.write_folder`."""
        vocabulary_file = clip_config.vocabulary_file(self.config)
        files = (
            {} if vocabulary_file is None or self.vocabulary is None else {vocabulary_file: self.vocabulary}
        )
        return write_folder(folder, self.config, self.net.state_dict(), dtype, files)

    @property
    def family(self) -> str:
        """As `config.json` names it."""
        return clip_config.FAMILY

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit_scale), a constant of every objective: it is never a candidate."""
        scale: Tensor = self.net.logit_scale.detach().exp()
        return scale.squeeze()

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the model takes."""
        return self._preprocess.size

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every weight a method may edit: not `EXCLUDED` by name, and used by an image or text feature.

        Whether a weight is used is read off the graph of one blank image and one empty text: to
        edit a tensor that no feature depends on would change nothing and still count as an edit.
        """
        named = {n: p for n, p in self.parameters.items() if not any(word in n for word in EXCLUDED)}
        size = self._preprocess.size
        with torch.enable_grad(), requiring_grad(self.net, named):
            image = self.image_features(torch.zeros(1, 3, size, size, device=self.device))
            text = self.text_features(self.tokenize([""]))
            used = reached([image, text], named)
        return tuple(
            CandidateLayer(name, tower_of(name), tuple(p.shape), p.numel())
            for name, p in named.items()
            if name in used
        )

    def may_edit(self, layer: str) -> bool:
        """Whether closed-form edits, which choose layers by their place, may change this weight."""
        return layer in self.parameters

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) on the CPU: start token, text, end token, then padding; see `text_lengths`."""
        ids: Tensor = self._tokenizer(list(texts))
        return ids

    @property
    def _stages(self) -> ModuleType:
        """How these towers are cut; no attribute, so that a model can be copied."""
        return clip_timm_hf_stages if clip_timm_hf.is_built(self.net) else clip_stages

    def text_lengths(self, tokens: Tensor) -> Tensor:
        """(N,) tokens of each text (N, L), start and end token included; what follows is padding."""
        lengths: Tensor = self._stages.text_lengths(self.net, tokens)
        return lengths

    def preprocess(self, images: Images) -> Tensor:
        """uint8 images (N, H, W, 3) to model input (N, 3, S, S) on the model's device.

        Raises:
            InputError: the array has another shape or type.
        """
        batch = torch.as_tensor(images)
        if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != torch.uint8:
            raise InputError(f"images must be uint8 (N, H, W, 3), got {batch.dtype} {tuple(batch.shape)}")
        return self._preprocess(batch, self.device)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Normalised features (N, D) of preprocessed images; open_clip's own, differentiable forward pass."""
        features: Tensor = self.net.encode_image(pixels, normalize=True)
        return features

    def text_features(self, tokens: Tensor) -> Tensor:
        """Normalised features (N, D) of token ids (N, L); as open_clip's own, but padding costs nothing."""
        return functional.normalize(self._stages.text_features(self.net, tokens), dim=-1)

    @torch.no_grad()
    def encode_images(self, images: Images, micro_batch: int = 64) -> Tensor:
        """Normalised features (N, D) of uint8 images (N, H, W, 3), N >= 1."""
        batches = self.image_batches(images)
        return self.staged("vision").features(batches, 0, len(images), micro_batch)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], micro_batch: int = 64) -> Tensor:
        """Normalised features (N, D) of texts, N >= 1."""
        batches = self.text_batches(texts, torch.zeros(len(texts), dtype=torch.long))
        return self.staged("text").features(batches, 0, len(texts), micro_batch)

    def staged(self, tower: Tower) -> StagedTower:
        """The tower as a sequence of stages (`clip_stages`).

        Built anew each time, which costs nothing beside a pass: functions are not copied with an object,
        so stages kept here would have a copied model run the weights of the original.
        """
        staged: StagedTower
        if tower == "vision":
            staged = self._stages.vision_tower(self.net.visual, self.preprocess)
        else:
            staged = self._stages.text_tower(self.net)
        return staged

    def image_batches(self, images: Images) -> list[Batch]:
        """uint8 images (N, H, W, 3) as they enter the first vision stage."""
        batch = torch.as_tensor(images)
        return [Batch(torch.arange(len(batch)), batch)]

    @torch.no_grad()
    def text_batches(self, texts: Sequence[str], groups: Tensor) -> list[Batch]:
        """N texts as they enter the first text stage; rows with equal `groups` (N,) begin alike."""
        batches: list[Batch] = self._stages.text_batches(self.net, self.tokenize(texts), groups)
        return batches


load = ClipModel.load


def tower_of(layer: str) -> Tower:
    """The tower that a weight of an open_clip CLIP model belongs to, by its name."""
    return "vision" if layer.startswith("visual.") else "text"
