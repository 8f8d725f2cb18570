"""What a CLIP model folder's `config.json` means: network, tokenizer, preprocessing; which weights fit it."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families import clip_timm_hf
from unlearning.families.config import CONFIG, only, section

FAMILY = "clip"
# What `config.json` may say, and what its parts may; open_clip refuses what it does not know of `model_cfg`.
FIELDS = ("schema", "family", "architecture", "model_cfg", "preprocess", "tokenizer")
PREPROCESS_FIELDS = ("size", "mean", "std", "interpolation")
TOKENIZER_FIELDS = ("kind", "context_length", "vocab")
# The file that a tokenizer of each kind is read from; "simple" has open_clip's own if none is named.
VOCABULARIES = {"simple": "bpe.txt.gz", "wordpiece": "tokenizer.json"}
# These make open_clip build towers of other families, and fetch them by name.
FOREIGN = ("timm_model_name", "hf_model_name", "hf_tokenizer_name")


def check_fields(config: Mapping[str, Any]) -> None:
    """Every field is known.

    Raises:
        ModelError: otherwise, or a part is missing; the message names the field.
    """
    only(config, FIELDS, CONFIG)
    only(section(config, "preprocess"), PREPROCESS_FIELDS, "preprocess")
    only(section(config, "tokenizer"), TOKENIZER_FIELDS, "tokenizer")


def build_network(model_cfg: Mapping[str, Any]) -> Any:
    """An open_clip `CLIP` network, or `CustomTextCLIP` of pretrained parts, with arbitrary weights.

    Raises:
        ModelError: the configuration is not one of a CLIP model with open_clip's own towers, and not
            one that `clip_timm_hf` takes.
    """
    from open_clip.model import CLIP

    if clip_timm_hf.describes(model_cfg):
        return clip_timm_hf.build_network(model_cfg)

    for tower in ("vision_cfg", "text_cfg"):
        options = section(model_cfg, tower)
        foreign = [name for name in FOREIGN if options.get(name) is not None]
        if foreign:
            raise ModelError(
                f"{tower}: a tower given by {foreign[0]} is not supported; "
                "an EfficientNet of timm is, beside a text_cfg with the hf_config of a BERT"
            )
    try:
        # The initial weights are thrown away; drawing them must not move the caller's generator.
        with torch.random.fork_rng(devices=[]):
            return CLIP(**model_cfg)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError):
        raise ModelError("model_cfg is not a configuration of an open_clip CLIP model") from None


def vocabulary_file(config: Mapping[str, Any]) -> str | None:
    """Name of the file in the model folder that holds the tokenizer's vocabulary; None for open_clip's own.

    Raises:
        ModelError: the tokenizer is of an unknown kind, or lacks what its kind needs.
    """
    options = section(config, "tokenizer")
    kind = options.get("kind")
    if kind not in tuple(VOCABULARIES) or not isinstance(options.get("context_length"), int):
        raise ModelError(
            "the tokenizer must be of kind 'simple' or 'wordpiece' with an integer context_length"
        )
    if options.get("vocab") is None and kind != "simple":
        raise ModelError(f"a tokenizer of kind {kind!r} needs its vocabulary as a file")
    return None if options.get("vocab") is None else VOCABULARIES[kind]


def build_tokenizer(config: Mapping[str, Any], vocabulary: bytes | None, net: Any) -> Any:
    """What turns texts into the ids that `net` reads: a callable from texts to (N, L).

    open_clip's `SimpleTokenizer`, with its own or a truncated merge list, for open_clip's text tower;
    `clip_timm_hf.WordPiece` for a BERT.

    Raises:
        ModelError: a kind that the text tower cannot read, a vocabulary that is missing or broken, or
            more tokens than token embeddings.
    """
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    if (vocabulary is None) != (vocabulary_file(config) is None):
        raise ModelError("a vocabulary must be given where the configuration names one, and only there")
    options = section(config, "tokenizer")
    kind = "wordpiece" if clip_timm_hf.is_built(net) else "simple"
    if options["kind"] != kind:
        raise ModelError(f"the text tower needs a tokenizer of kind {kind!r}, got {options['kind']!r}")
    if kind == "wordpiece":
        assert vocabulary is not None  # or `vocabulary_file` had refused
        return clip_timm_hf.WordPiece(vocabulary, options["context_length"], net.text.config)
    source = default_bpe() if vocabulary is None else io.BytesIO(vocabulary)
    try:
        tokenizer = SimpleTokenizer(bpe_path=source, context_length=options["context_length"])
    except (OSError, EOFError, ValueError):
        raise ModelError("the tokenizer vocabulary is not a gzip file of merges") from None
    if tokenizer.vocab_size > net.vocab_size:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model embeds {net.vocab_size}"
        )
    return tokenizer


@dataclass(frozen=True)
class Preprocess:
    """uint8 images to model input, as open_clip's evaluation transform does it."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocess":
        """Read the `preprocess` object.

        Raises:
            ModelError: a value is missing or of the wrong kind.
        """
        options = section(config, "preprocess")
        try:
            mean, std = (tuple(float(v) for v in options[name]) for name in ("mean", "std"))
            size, interpolation = options["size"], options["interpolation"]
        except (KeyError, TypeError, ValueError):
            raise ModelError("preprocess needs size, mean, std and interpolation") from None
        sane = isinstance(size, int) and size > 0 and len(mean) == len(std) == 3 and min(std) > 0
        if not sane or interpolation not in ("bicubic", "bilinear"):
            raise ModelError(
                f"preprocess of size {size!r} and interpolation {interpolation!r} is not supported"
            )
        return cls(size, mean, std, interpolation)

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """(N, H, W, 3) uint8 to (N, 3, size, size) fp32: shorter side to `size`, centre crop, normalise.

        Where sides do not divide, torchvision's `Resize` and `CenterCrop` decide, to the pixel: the longer
        side is rounded down, and of an odd number of pixels to cut, half is rounded to the even one.
        Bytes go to the device, where they are normalised: a quarter of what floats would be to move.
        Channels stay last in memory, as the bytes are: on a CPU convolutions take half the time then.
        """
        pixels = images.permute(0, 3, 1, 2)
        sides = pixels.shape[-2:]
        if min(sides) != self.size:
            shape = tuple(int(self.size * side / min(sides)) for side in sides)
            # On uint8, antialiased interpolation rounds like Pillow does; CUDA has no uint8 kernel.
            pixels = functional.interpolate(pixels.cpu(), size=shape, mode=self.interpolation, antialias=True)
        top, left = (round((side - self.size) / 2) for side in pixels.shape[-2:])
        pixels = pixels[..., top : top + self.size, left : left + self.size].to(device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        return (pixels.float() / 255.0 - mean) / std
