"""A text tower of transformers under open_clip's names, exactly, and back.

transformers (CLIPTextModel)                    open_clip (CLIP)
embeddings.token_embedding.weight               token_embedding.weight
embeddings.position_embedding.weight            positional_embedding
encoder.layers.i.layer_norm1, layer_norm2       transformer.resblocks.i.ln_1, ln_2
encoder.layers.i.self_attn.{q,k,v}_proj         transformer.resblocks.i.attn.in_proj_{weight,bias}
encoder.layers.i.self_attn.out_proj             transformer.resblocks.i.attn.out_proj
encoder.layers.i.mlp.fc1, fc2                   transformer.resblocks.i.mlp.c_fc, c_proj
final_layer_norm                                ln_final
text_projection.weight                          text_projection, transposed
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from contracts.errors import ModelError

_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}


def from_hf_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text tower of transformers under open_clip's names.

    Raises:
        ModelError: a name is none of a CLIP text tower's.
    """
    named = {short_name(name): value for name, value in weights.items()}
    found: dict[str, Tensor] = {}
    for name, value in named.items():
        if name in _OUTSIDE:
            found[_OUTSIDE[name]] = value
        elif name == "text_projection.weight":
            found["text_projection"] = value.T.contiguous()
        elif name == "embeddings.position_ids":
            continue
        else:
            block, inner = _in_block(name, "encoder.layers.")
            module, _, kind = inner.rpartition(".")
            at = f"transformer.resblocks.{block}."
            if module in _IN_LAYER:
                found[f"{at}{_IN_LAYER[module]}.{kind}"] = value
            elif module == "self_attn.q_proj":
                stacked = [named[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
                found[f"{at}attn.in_proj_{kind}"] = torch.cat(stacked)
            elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
                raise ModelError(f"{name} is no tensor of a CLIP text tower")
    return found


def to_hf_text(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `from_hf_text`; tensors of a vision tower and the logit scale are left out."""
    outside = {own: name for name, own in _OUTSIDE.items()}
    in_layer = {own: name for name, own in _IN_LAYER.items()}
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in outside:
            found[outside[name]] = value
        elif name == "text_projection":
            found["text_projection.weight"] = value.T.contiguous()
        elif name.startswith("transformer.resblocks."):
            block, inner = _in_block(name, "transformer.resblocks.")
            at = f"encoder.layers.{block}."
            if inner.startswith("attn.in_proj_"):
                kind = inner.removeprefix("attn.in_proj_")
                for part, rows in zip("qkv", value.chunk(3), strict=True):
                    found[f"{at}self_attn.{part}_proj.{kind}"] = rows.contiguous()
            else:
                module, _, kind = inner.rpartition(".")
                found[f"{at}{in_layer[module]}.{kind}"] = value
    return found


def _in_block(name: str, prefix: str) -> tuple[str, str]:
    block, _, inner = name.removeprefix(prefix).partition(".")
    if not name.startswith(prefix) or not block.isdigit():
        raise ModelError(f"{name} is no tensor of a CLIP text tower")
    return block, inner


def short_name(name: str) -> str:
    """Without the prefix that one generation of transformers writes and another does not."""
    return name.removeprefix("text_model.")
