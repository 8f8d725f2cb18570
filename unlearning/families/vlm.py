"""The vision-language family: LLaVA-shaped models, a CLIP vision tower read by a Llama.

A model folder holds `weights.safetensors`, `config.json` (see `vlm_config`), `decoder-tokenizer.json`
and, with a text tower, its vocabulary where it is not open_clip's own.  Names of weights:

    visual.*, and those of the text tower   the CLIP model, as in a CLIP model folder
    projector.*                             features of the tower to image tokens
    decoder.*                               the language model

What is edited is

    vision      the tower.  Its CLIP (`VlmModel.clip`) is a `ClipModel` over the same tensors, so every
                method for CLIP models runs on it; only what feeds the layer that the language model reads
                is a candidate.
    language    of the decoder the second matrix of every MLP, its memories: what they write is what their
                keys, the rows that enter, stand for (Geva et al., arXiv 2012.14913; edited so in MEMIT,
                arXiv 2210.07229).  None where the decoder is held in half precision.

The model is always in `eval()` mode; what is edited is in fp32.

Shapes: N images, H x W pixels, T image tokens, C channels, W decoder width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import InputError, ModelError
from contracts.values import Objective, Tower
from unlearning.families import CandidateLayer, clip_config, clip_stages
from unlearning.families.clip import Images
from unlearning.families.config import (
    CONFIG,
    check_weights,
    read_beside,
    read_config,
    read_weights,
    write_folder,
)
from unlearning.families.staged_tower import Batch, StagedTower
from unlearning.families.vlm_config import FAMILY, ClipPart, VlmConfig, parse
from unlearning.families.vlm_decoder import (
    MAX_NEW_TOKENS,
    Chat,
    embedded,
    greedy,
)
from unlearning.families.vlm_forced import Forced, forced
from unlearning.families.vlm_language import PARTS, expected_weights, language_parts
from unlearning.families.vlm_reader import FeatureReader, ReadClip, VisionOnly, feature_reader

TOWERS: tuple[Tower, ...] = ("vision", "language")
OBJECTIVES: tuple[Objective, ...] = ("answers", "clip")
TOKENIZER = "decoder-tokenizer.json"
MEMORY = "decoder.model.layers.{}.mlp.down_proj.weight"


class VlmModel:
    """A vision-language model: load and save, answer questions, name the weights a method may edit.

    Args:
        config: content of `config.json`.
        weights: by name as in a model folder, in fp32; the decoder's may be in half precision.
        files: content of the tokenizer file and of the text tower's vocabulary, by file name.
        device: where the weights live.

    Raises:
        ModelError: configuration and weights do not make a finite model of this family.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        files: Mapping[str, bytes],
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.files = dict(files)
        cfg = parse(config)
        if TOKENIZER not in files:
            raise ModelError(f"{TOKENIZER} is missing")
        self.chat = Chat(files[TOKENIZER], cfg.chat, cfg.decoder)
        self._preprocess = clip_config.Preprocess.from_config(config["clip"])
        own = {name: w for name, w in weights.items() if not name.startswith(PARTS)}
        self._clip, self.net = self._towers(cfg, own)
        self._reads = cfg.reads
        self.projector, self.decoder = language_parts(cfg, self.reader.width, weights)
        for name, part in (("projector", self.projector), ("decoder", self.decoder)):
            self.net.add_module(name, part.to(self.device).eval().requires_grad_(False))
        self._end = cfg.decoder.eos_token_id
        self.parameters: dict[str, nn.Parameter] = dict(self.net.named_parameters())

    def _towers(self, cfg: VlmConfig, weights: Mapping[str, Tensor]) -> tuple[ReadClip | None, Any]:
        """The CLIP model, if the folder holds a whole one, and the network that has the vision tower."""
        if cfg.clip.tokenizer is not None:
            whole = {"schema": 1, "family": clip_config.FAMILY, **dict(self.config["clip"])}
            name = clip_config.vocabulary_file(whole)
            vocabulary = None if name is None else self.files.get(name)
            clip = ReadClip(whole, weights, vocabulary, self.device, cfg.reads)
            return clip, clip.net
        net = VisionOnly(cfg.clip.model_cfg)
        check_weights(net.state_dict(), weights)
        net.load_state_dict(weights)
        return None, net.to(self.device).eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu", keep_half: bool = False) -> "VlmModel":
        """Read a model folder; its digests are the registry's business and not checked here.

        Args:
            folder: the model folder.
            device: where the weights live.
            keep_half: leave the decoder in the half precision that the file holds; it cannot be edited then.

        Raises:
            ModelError: a file is missing or unreadable, the family is another one, or the weights do not
                fit the configuration or are not finite (the message names the tensor).
        """
        config = read_config(folder / CONFIG, FAMILY)
        cfg = parse(config)
        weights = read_weights(folder, as_stored="decoder." if keep_half else None)
        files = {name: read_beside(folder, name) for name in file_names(cfg.clip, config)}
        return cls(config, weights, files, device)

    @classmethod
    def from_pretrained(cls, folder: Path, **options: Any) -> "VlmModel":
        """Import a `from_pretrained` folder; see `unlearning.families.vlm_llava.read_pretrained`.

        Raises:
            ModelError: see there.
        """
        from unlearning.families.vlm_llava import read_pretrained

        return cls(*read_pretrained(folder, **options))

    def save(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> dict[str, str]:
        """See `unlearning.families.config.write_folder`."""
        return write_folder(folder, self.config, self.state(), dtype, self.files)

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the model folder by name: weights, and the running statistics of a ResNet."""
        return {
            **{n: w for n, w in self.net.state_dict().items() if not n.startswith("decoder.")},
            **{f"decoder.{n}": w for n, w in expected_weights(self.decoder).items()},
        }

    @property
    def family(self) -> str:
        """`vlm`."""
        return FAMILY

    @property
    def clip(self) -> ReadClip:
        """The CLIP model whose vision tower is read; what is edited there is edited here.

        Raises:
            ModelError: the folder holds the vision tower alone.
        """
        if self._clip is None:
            raise ModelError(
                "the model has no CLIP text tower: give its CLIP model, or take gradients from answers"
            )
        return self._clip

    @property
    def image_size(self) -> int:
        """Side in pixels of the square images that the model takes."""
        return self._preprocess.size

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """Every weight a method may edit: what feeds the layer that is read, and the decoder's memories."""
        memories = (
            CandidateLayer(name, "language", tuple(weight.shape), weight.numel())
            for name in map(MEMORY.format, range(len(self.decoder.model.layers)))
            if (weight := self.parameters[name]).dtype == torch.float32
        )
        return (*self.reader.candidates(self.parameters), *memories)

    @property
    def reader(self) -> FeatureReader:
        """Reads the layer of the vision tower that the language model is given; see `staged`."""
        return feature_reader(self.net.visual, self.staged("vision"), self._reads)

    def staged(self, tower: Tower) -> StagedTower:
        """The vision tower as a sequence of stages; built anew each time, see `ClipModel.staged`.

        Raises:
            ModelError: another tower is asked for.
        """
        if tower != "vision":
            raise ModelError(f"of a vision-language model the vision tower has stages, not {tower!r}")
        if self._clip is not None:
            return self._clip.staged(tower)
        return clip_stages.vision_tower(self.net.visual, self.preprocess)

    def preprocess(self, images: Images) -> Tensor:
        """uint8 images (N, H, W, 3) to model input (N, 3, S, S) on the model's device.

        Raises:
            InputError: the array has another shape or type.
        """
        batch = torch.as_tensor(images)
        if batch.ndim != 4 or batch.shape[-1] != 3 or batch.dtype != torch.uint8:
            raise InputError(f"images must be uint8 (N, H, W, 3), got {batch.dtype} {tuple(batch.shape)}")
        return self._preprocess(batch, self.device)

    def image_batches(self, images: Images) -> list[Batch]:
        """uint8 images (N, H, W, 3) as they enter the first vision stage."""
        batch = torch.as_tensor(images)
        return [Batch(torch.arange(len(batch)), batch)]

    def features(self, images: Images, micro_batch: int = 64) -> Tensor:
        """(N, T, C) what the projector reads of uint8 images (N, H, W, 3), N >= 1; differentiable."""
        return self.reader.features(self.image_batches(images), 0, len(images), micro_batch)

    def answers(
        self,
        images: Images,
        questions: Sequence[str],
        micro_batch: int = 64,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[str]:
        """The model's answer to one question about each image, decoded greedily.

        Raises:
            InputError: there are no images, or not as many questions.
        """
        with torch.no_grad():
            return self.answers_to(self.features(images, micro_batch), questions, micro_batch, max_new_tokens)

    @torch.no_grad()
    def answers_to(
        self,
        features: Tensor,
        questions: Sequence[str],
        micro_batch: int = 64,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> list[str]:
        """Answers to one question about each of N images, by their features (N, T, C).

        Rows whose prompts are equally long run together, so nothing is padded.

        Raises:
            InputError: there are no images, or not as many questions.
        """
        if not len(features) or len(features) != len(questions):
            raise InputError(f"{len(features)} images and {len(questions)} questions do not make a task")
        prompts = [self.chat.prompt(question) for question in questions]
        answers = [""] * len(prompts)
        for length in sorted({len(prompt) for prompt in prompts}):
            own = torch.tensor([i for i, prompt in enumerate(prompts) if len(prompt) == length])
            for rows in torch.split(own, micro_batch):
                ids = torch.tensor([prompts[i] for i in rows], device=self.device)
                tokens = self.projector(features[rows.to(features.device)])
                inputs = embedded(self.decoder, ids, self.chat.image_token, tokens)
                said = greedy(self.decoder, inputs, self._end, max_new_tokens)
                for row, answer in zip(rows.tolist(), said.tolist(), strict=True):
                    answers[row] = self.chat.text(answer)
        return answers

    def forced(self, features: Tensor, asked: Sequence[tuple[list[int], list[bool]]]) -> Forced:
        """Where given answers leave the decoder, and what it expects there; differentiable.

        Args:
            features: (N, T, C) of the images.
            asked: token ids and what counts, as `Chat.answered` gives them, for each image.
        """
        return forced(self.decoder, self.chat.image_token, self.projector(features), asked)


def file_names(clip: ClipPart, config: Mapping[str, Any]) -> list[str]:
    """The files of a model folder beside weights and configuration."""
    vocabulary = None if clip.tokenizer is None else clip_config.vocabulary_file(config["clip"])
    return [TOKENIZER] if vocabulary is None else [TOKENIZER, vocabulary]


load = VlmModel.load
