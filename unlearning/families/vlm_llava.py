"""transformers' LLaVA folders as slugline model folders, and back.

Read are `config.json`, `tokenizer.json`, `preprocessor_config.json` where there is one, and weights as
safetensors, in one file or in shards with an index; no file is ever unpickled.  The vision tower must be a
CLIP ViT and the language model a Llama.  What is written, `LlavaForConditionalGeneration` reads.

The folder holds a vision tower without its text tower.  Give the matching CLIP model too, and gradients
can be taken from its cosine loss, as in the paper (arXiv 2407.11867, section 4.3).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contracts.errors import ModelError
from unlearning.families.clip import ClipModel
from unlearning.families.config import read_json, widened
from unlearning.families.vlm import TOKENIZER, VlmModel, file_names
from unlearning.families.vlm_config import parse
from unlearning.families.vlm_llava_config import LLAVA_DEFAULTS, config_of
from unlearning.families.vlm_llava_names import from_transformers, to_transformers

PROMPT = "USER: <image>\n{} ASSISTANT:"
QUESTION = "What is the name of the person in the image?"
# Of CLIP's own image processor, where the folder does not say.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_pretrained(
    folder: Path,
    clip: ClipModel | None = None,
    prompt: str = PROMPT,
    question: str = QUESTION,
    device: torch.device | str = "cpu",
    keep_half: bool = False,
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes], torch.device | str]:
    """Configuration, weights, files and device of a `VlmModel`.

    Args:
        folder: a `from_pretrained` folder.
        clip: the CLIP model whose vision tower it is, for its text tower.
        prompt: how a question is put, with "<image>" and {}.
        question: what asks for a name, as in the paper; the answer is the name, without an article.
        device: passed through.
        keep_half: leave the decoder in the half precision that the files hold.

    Raises:
        ModelError: a file is missing or unreadable, a part is of another kind than described above, or the
            CLIP model's vision tower is another one.
    """
    told = read_json(folder / "config.json")
    config = config_of(told, _preprocess(folder), prompt, _image_token(folder, told))
    config["chat"] |= {"question": question, "article": False}
    weights = from_transformers(_weights(folder), config["decoder"]["tie_word_embeddings"])
    weights = widened(weights, as_stored="decoder." if keep_half else None)
    try:
        files = {TOKENIZER: (folder / "tokenizer.json").read_bytes()}
    except OSError:
        raise ModelError("tokenizer.json is missing") from None
    if clip is not None:
        _add_text_tower(config, weights, files, clip)
    return config, weights, files, device


def write_pretrained(model: VlmModel, folder: Path) -> None:
    """Write a `from_pretrained` folder, without the text tower and `visual.proj`, which LLaVA does not hold.

    Raises:
        ModelError: the vision tower is no ViT, so transformers has no such model.
    """
    cfg = parse(model.config)
    model_cfg, vision = cfg.clip.model_cfg, cfg.clip.model_cfg["vision_cfg"]
    if not isinstance(vision["layers"], int):
        raise ModelError("transformers has no LLaVA with a ModifiedResNet as its vision tower")
    text = asdict(cfg.decoder)
    rope = {"rope_type": "default", "rope_theta": text.pop("rope_theta")}
    width = vision["width"]
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": model.chat.image_token,
        "image_seq_length": (vision["image_size"] // vision["patch_size"]) ** 2 + cfg.reads.class_token,
        "projector_hidden_act": cfg.projector.act,
        "multimodal_projector_bias": cfg.projector.bias,
        "vision_feature_layer": cfg.reads.layer,
        "vision_feature_select_strategy": "full" if cfg.reads.class_token else "default",
        "tie_word_embeddings": cfg.decoder.tie_word_embeddings,
        "text_config": {**text, "rope_parameters": rope},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": round(width * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": width // vision.get("head_width", 64),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "projection_dim": model_cfg["embed_dim"],
            "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
            "layer_norm_eps": 1e-5,
        },
    }
    preprocess = cfg.clip.preprocess
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": preprocess["size"]},
        "crop_size": {"height": preprocess["size"], "width": preprocess["size"]},
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
        "resample": 3 if preprocess["interpolation"] == "bicubic" else 2,
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: w.to("cpu").contiguous() for name, w in to_transformers(model.state()).items()}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(model.files[TOKENIZER])


def _add_text_tower(
    config: dict[str, Any], weights: dict[str, Tensor], files: dict[str, bytes], clip: ClipModel
) -> None:
    """Join a LLaVA's vision tower with the CLIP model that it came from.

    Raises:
        ModelError: the CLIP model has another vision tower.
    """
    theirs = clip.net.state_dict()
    for name in sorted(name for name in weights if name.startswith("visual.")):
        got = theirs.get(name)
        # LLaVA is published in half precision.
        if (
            got is None
            or got.shape != weights[name].shape
            or not torch.equal(got.half(), weights[name].half())
        ):
            raise ModelError(f"the CLIP model is not the one that is read: {name} differs")
    own = {name: clip.config[name] for name in ("architecture", "model_cfg", "tokenizer")}
    ours = config["clip"]["model_cfg"]
    for what, got, wanted in (
        ("quick_gelu", bool(own["model_cfg"].get("quick_gelu")), ours["quick_gelu"]),
        (
            "head_width",
            own["model_cfg"]["vision_cfg"].get("head_width", 64),
            ours["vision_cfg"]["head_width"],
        ),
    ):
        if got != wanted:
            raise ModelError(f"the CLIP model is not the one that is read: {what} differs")
    config["clip"] = {**own, "preprocess": config["clip"]["preprocess"]}
    weights |= {name: w.clone() for name, w in theirs.items() if name not in weights}
    cfg = parse(config)
    for name in file_names(cfg.clip, config):
        if name != TOKENIZER and clip.vocabulary is not None:
            files[name] = clip.vocabulary


def _weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of the folder's safetensors files.

    Raises:
        ModelError: there are none, a shard is missing or broken, or one lies outside the folder.
    """
    shards = [SINGLE]
    if (folder / INDEX).exists():
        try:
            shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError):
            raise ModelError(f"{INDEX} has no weight_map") from None
    weights: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise ModelError(f"{INDEX} names {shard!r}, which is no file of its folder")
        try:
            weights |= load_file(folder / shard)
        except (OSError, SafetensorError):
            raise ModelError(f"{shard} is missing or is not a complete safetensors file") from None
    return weights


def _preprocess(folder: Path) -> dict[str, Any]:
    """Mean, deviation and interpolation of the image processor."""
    path = folder / "preprocessor_config.json"
    told = read_json(path) if path.exists() else {}
    told = told.get("image_processor", told)
    return {
        "mean": list(told.get("image_mean", MEAN)),
        "std": list(told.get("image_std", STD)),
        "interpolation": "bilinear" if told.get("resample", 3) == 2 else "bicubic",
    }


def _image_token(folder: Path, told: Mapping[str, Any]) -> str:
    """What the tokenizer calls the image token.

    Raises:
        ModelError: the tokenizer is missing or has no such token.
    """
    index = told.get("image_token_index", told.get("image_token_id", LLAVA_DEFAULTS["image_token_index"]))
    for token in read_json(folder / "tokenizer.json").get("added_tokens", ()):
        if token.get("id") == index:
            return str(token["content"])
    raise ModelError(f"tokenizer.json has no token of the id {index!r} that stands for the image")
