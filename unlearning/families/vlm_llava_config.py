"""The configuration of a model folder, from that of a LLaVA folder of transformers."""

from collections.abc import Mapping
from typing import Any

from contracts.errors import ModelError
from unlearning.families.vlm_config import FAMILY

# transformers leaves out of `config.json` what its classes have as defaults.
VISION_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 512,
    "num_channels": 3,
}
LLAMA_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAVA_DEFAULTS = {
    "projector_hidden_act": "gelu",
    "multimodal_projector_bias": True,
    "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2,
    "image_token_index": 32000,
    "tie_word_embeddings": False,
}


def config_of(
    told: Mapping[str, Any], preprocess: Mapping[str, Any], prompt: str, image_token: str
) -> dict[str, Any]:
    """`config.json` of a model folder, from the one of a LLaVA folder.

    Args:
        told: content of the latter.
        preprocess: as in a CLIP model folder, without `size`.
        prompt: how a question is put.
        image_token: the tokenizer's image token.

    Raises:
        ModelError: the model is no LLaVA of a CLIP ViT and a Llama, or has an option that is not supported.
    """
    if told.get("model_type") != "llava":
        raise ModelError(f"the model is of type {told.get('model_type')!r}, expected 'llava'")
    told = {**LLAVA_DEFAULTS, **told}
    vision = {**VISION_DEFAULTS, **_part(told, "vision_config", "clip_vision_model")}
    text = {**LLAMA_DEFAULTS, **_part(told, "text_config", "llama")}
    for what, got, wanted in (
        ("projector_hidden_act", told["projector_hidden_act"], ("gelu",)),
        ("vision hidden_act", vision["hidden_act"], ("quick_gelu", "gelu")),
        ("vision layer_norm_eps", vision["layer_norm_eps"], (1e-5,)),
        ("num_channels", vision["num_channels"], (3,)),
        ("attention_bias", text.get("attention_bias", False), (False,)),
        ("mlp_bias", text.get("mlp_bias", False), (False,)),
        ("rope_type", _rope(text)[0], ("default",)),
        ("vision_feature_select_strategy", told["vision_feature_select_strategy"], ("default", "full")),
    ):
        if got not in wanted:
            raise ModelError(f"{what} {got!r} is not supported; {' or '.join(map(str, wanted))} is")
    try:
        width, heads = vision["hidden_size"], vision["num_attention_heads"]
        decoder = {
            **{name: text[name] for name in LLAMA_DEFAULTS},
            "model_type": "llama",
            "vocab_size": text["vocab_size"],
            "num_key_value_heads": text.get("num_key_value_heads") or text["num_attention_heads"],
            "rope_theta": _rope(text)[1],
            "tie_word_embeddings": bool(
                told["tie_word_embeddings"] or text.get("tie_word_embeddings", False)
            ),
        }
        vision_cfg = {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": width,
            "head_width": width // heads,
            "mlp_ratio": vision["intermediate_size"] / width,
        }
    except KeyError as missing:
        raise ModelError(f"config.json lacks {missing.args[0]}") from None
    if (
        text.get("head_dim", decoder["hidden_size"] // decoder["num_attention_heads"])
        * decoder["num_attention_heads"]
        != decoder["hidden_size"]
    ):
        raise ModelError("a head_dim other than hidden_size / num_attention_heads is not supported")
    return {
        "schema": 1,
        "family": FAMILY,
        "clip": {
            "architecture": None,
            "model_cfg": {
                "embed_dim": vision["projection_dim"],
                "vision_cfg": vision_cfg,
                "quick_gelu": vision["hidden_act"] == "quick_gelu",
            },
            "preprocess": {"size": vision["image_size"], **preprocess},
            "tokenizer": None,
        },
        "reads": {
            "layer": told["vision_feature_layer"],
            "class_token": told["vision_feature_select_strategy"] == "full",
        },
        "projector": {"act": "gelu", "bias": told["multimodal_projector_bias"]},
        "decoder": decoder,
        "chat": {"prompt": prompt.replace("<image>", image_token), "image_token": image_token},
    }


def _part(told: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    part = told.get(name)
    if not isinstance(part, dict) or part.get("model_type") != kind:
        got = part.get("model_type") if isinstance(part, dict) else None
        raise ModelError(f"{name} must be of type {kind!r}, got {got!r}")
    return part


def _rope(text: Mapping[str, Any]) -> tuple[str, float]:
    """Kind and base of the rotary positions, as either generation of transformers writes them."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return str(kind), float(rope.get("rope_theta") or text.get("rope_theta") or 10000.0)
