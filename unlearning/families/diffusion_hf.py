"""Diffusion pipelines of diffusers as slugline model folders, and back.

diffusers and transformers read their own files, safetensors only and from the local folder only.
"""

import gzip
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning.families.clip import ClipModel
from unlearning.families.config import read_json
from unlearning.families.diffusion import CLIPS, DiffusionModel
from unlearning.families.diffusion_config import FAMILY, options_of
from unlearning.families.diffusion_hf_names import from_hf_text, short_name, to_hf_text

TEXT_FOLDERS = ("text_encoder", "text_encoder_2")
TOKENIZER_FOLDERS = ("tokenizer", "tokenizer_2")
PIPELINES = {"StableDiffusionPipeline": 7.5, "StableDiffusionXLPipeline": 5.0}  # class: usual guidance
STEPS = 50
# Relative difference up to which two copies of a tensor are the same but for half precision.
ROUNDING = 1e-2


def from_diffusers(folder: Path, clips: Sequence[ClipModel | None] = ()) -> DiffusionModel:
    """Read a pipeline of Stable Diffusion 1.x, 2.x or XL in diffusers' layout.

    Args:
        folder: the pipeline's, with `model_index.json`.
        clips: for each text tower the CLIP that it was taken from, or None: a tower without its CLIP has
            no gradients of the paper's kind.  Where both have a tensor, the pipeline's is taken.

    Raises:
        InputError: there are more CLIPs than text towers.
        ModelError: a part is missing, is no safetensors file, or of a kind that is not supported; or a
            text tower is not that of its CLIP (the message names the tensor).
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ModelError(f"a pipeline of class {name!r} is not supported; {', '.join(PIPELINES)} are")
    is_xl = name == "StableDiffusionXLPipeline"
    parts = CLIPS[: 2 if is_xl else 1]
    if len(clips) > len(parts):
        raise InputError(f"{len(clips)} CLIPs for a pipeline of {len(parts)} text tower{'s' * is_xl}")
    unet = _pretrained(UNet2DConditionModel, folder / "unet")
    vae = _pretrained(AutoencoderKL, folder / "vae")
    entries, vocabularies = [], []
    weights: dict[str, Tensor] = {}
    for i, part in enumerate(parts):
        entry, own, vocabulary = _text_tower(folder, i, is_xl)
        clip = clips[i] if i < len(clips) else None
        if clip is not None:
            own = _completed(own, clip)
            entry |= {key: clip.config[key] for key in ("model_cfg", "preprocess")}
        entries.append(entry)
        vocabularies.append(vocabulary)
        weights |= {f"{part}.{key}": value for key, value in own.items()}
    if len(set(vocabularies)) != 1:
        raise ModelError("the pipeline's tokenizers have different vocabularies")
    schedule = options_of(DDIMScheduler, read_json(folder / "scheduler" / "scheduler_config.json"))
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    config = {
        "schema": 1,
        "family": FAMILY,
        "architecture": name,
        "clips": entries,
        "unet": options_of(UNet2DConditionModel, unet.config),
        "codec": {"kind": "vae", "config": options_of(AutoencoderKL, vae.config)},
        # Latents are not bounded; DDIM's own default would clip them.
        "scheduler": {**schedule, "clip_sample": False},
        "sampling": {
            "size": unet.config["sample_size"] * factor,
            "steps": STEPS,
            "guidance": PIPELINES[name],
            "unconditional": "zeros"
            if index.get("force_zeros_for_empty_prompt", is_xl) and is_xl
            else "empty",
        },
    }
    weights |= {f"unet.{key}": value for key, value in unet.state_dict().items()}
    weights |= {f"vae.{key}": value for key, value in vae.state_dict().items()}
    config = json.loads(json.dumps(config))  # tuples of diffusers' defaults become lists, as in a file
    return DiffusionModel(config, weights, vocabularies[0])


def to_diffusers(model: DiffusionModel, like: Path, folder: Path) -> None:
    """Write the model in the layout of the pipeline it was read from.

    Args:
        model: as `from_diffusers` made it, edited or not.
        like: that pipeline; everything but the weights of text towers and UNet is copied from there.
        folder: must not exist.

    Raises:
        ModelError: the pipeline has another shape.
    """
    from diffusers import UNet2DConditionModel

    edited = [*TEXT_FOLDERS[: len(model.encoders)], "unet"]
    pickles = shutil.ignore_patterns("*.bin", "*.ckpt", "*.pt", "*.msgpack")

    def left_out(at: str, names: list[str]) -> set[str]:
        own = {n for n in names if ".safetensors" in n} if Path(at).name in edited else set()
        return own | pickles(at, names)

    shutil.copytree(like, folder, ignore=left_out)
    parts: list[tuple[str, Any, dict[str, Tensor]]] = [
        (name, _text_class(like / name), to_hf_text(encoder.net.state_dict()))
        for name, encoder in zip(TEXT_FOLDERS, model.encoders, strict=False)
    ]
    parts.append(("unet", UNet2DConditionModel, dict(model.unet.state_dict())))
    for name, kind, weights in parts:
        net = _pretrained(kind, like / name)
        named = {short_name(key): key for key in net.state_dict()}
        try:
            # Blocks and projection that only the CLIP has stay behind.
            net.load_state_dict({named[key]: value for key, value in weights.items() if key in named})
        except RuntimeError:
            raise ModelError(f"{name}: the pipeline has other tensors than the model") from None
        net.save_pretrained(folder / name, safe_serialization=True)


def text_cfg_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's `model_cfg`, text side only, of the configuration of a CLIPTextModel."""
    text_cfg = {
        "context_length": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "layers": config["num_hidden_layers"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"],
    }
    if config.get("layer_norm_eps", 1e-5) != 1e-5:
        text_cfg["norm_kwargs"] = {"eps": config["layer_norm_eps"]}
    if config["hidden_act"] not in ("gelu", "quick_gelu"):
        raise ModelError(f"a text tower with activation {config['hidden_act']!r} is not supported")
    return {"text_cfg": text_cfg, "quick_gelu": config["hidden_act"] == "quick_gelu"}


def reads_of(n_blocks: int, is_xl: bool, second: bool, padding: int) -> dict[str, Any]:
    """What a published pipeline reads of a tower of so many blocks (see `diffusion_text`)."""
    blocks = n_blocks - 1 if is_xl else n_blocks
    return {"blocks": blocks, "normed": not is_xl, "pooled": second, "padding": padding}


def _text_tower(folder: Path, i: int, is_xl: bool) -> tuple[dict[str, Any], dict[str, Tensor], bytes]:
    """Configuration entry, weights under open_clip's names, and vocabulary of the i-th text tower."""
    at = folder / TEXT_FOLDERS[i]
    weights = from_hf_text(_pretrained(_text_class(at), at).state_dict())
    model_cfg = text_cfg_of(read_json(at / "config.json"))
    if "text_projection" in weights:
        model_cfg["embed_dim"] = weights["text_projection"].shape[1]
    merges, padding = _tokenizer(folder / TOKENIZER_FOLDERS[i])
    text_cfg = model_cfg["text_cfg"]
    entry = {
        "model_cfg": model_cfg,
        "tokenizer": {"kind": "simple", "context_length": text_cfg["context_length"], "vocab": "bpe.txt.gz"},
        "reads": reads_of(text_cfg["layers"], is_xl, i == 1, padding),
    }
    return entry, weights, gzip.compress("\n".join(["", *merges]).encode(), mtime=0)


def _text_class(folder: Path) -> Any:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    kinds = {kind.__name__: kind for kind in (CLIPTextModel, CLIPTextModelWithProjection)}
    for name in read_json(folder / "config.json").get("architectures") or ():
        if name in kinds:
            return kinds[name]
    raise ModelError(f"{folder.name} is no CLIP text tower of transformers")


def _tokenizer(folder: Path) -> tuple[list[str], int]:
    """The merges of a CLIP tokenizer of transformers, and the id it pads with."""
    try:
        if (folder / "merges.txt").exists():
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = [line for line in lines[1:] if line]
        else:
            pairs = read_json(folder / "tokenizer.json")["model"]["merges"]
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
    except (OSError, KeyError):
        raise ModelError(f"{folder.name} holds neither merges.txt nor tokenizer.json") from None
    pad = read_json(folder / "tokenizer_config.json").get("pad_token", "<|endoftext|>")
    pad = pad["content"] if isinstance(pad, Mapping) else pad
    ids = {"!": 0, "<|endoftext|>": 2 * 256 + len(merges) + 1}
    if pad not in ids:
        raise ModelError(f"{folder.name} pads with {pad!r}; {' and '.join(ids)} are supported")
    return merges, ids[pad]


def _completed(own: Mapping[str, Tensor], clip: ClipModel) -> dict[str, Tensor]:
    """The CLIP's tensors, with the pipeline's text tower in place of its own.

    Raises:
        ModelError: a tensor of the pipeline is missing there or differs by more than rounding.
    """
    state: dict[str, Tensor] = dict(clip.net.state_dict())
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            raise ModelError(f"{name} of the pipeline's text tower is none of the CLIP's")
        other = state[name].to(value)
        if float((value - other).norm()) > ROUNDING * float(other.norm()):
            raise ModelError(f"{name} of the pipeline's text tower is not that of the CLIP")
    return {**state, **own}


def _pretrained(kind: Any, folder: Path) -> Any:
    """A part of a pipeline, from its safetensors files alone, in fp32.

    Raises:
        ModelError: the folder or its weights are missing or broken.
    """
    halves: Iterable[Path] = folder.glob("*.fp16.safetensors")
    whole = any(".fp16." not in path.name for path in folder.glob("*.safetensors"))
    variant = None if whole or not any(halves) else "fp16"
    if not folder.is_dir() or (not whole and variant is None):
        raise ModelError(f"{folder.name} holds no safetensors file")
    try:
        net = kind.from_pretrained(str(folder), use_safetensors=True, local_files_only=True, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError):
        raise ModelError(f"{folder.name} cannot be read as a {kind.__name__}") from None
    return net.float()
