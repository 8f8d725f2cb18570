"""Names of weights in a LLaVA folder of transformers, and in a slugline model folder.

transformers has written three generations of names: with or without "model." in front, the language model
with its head inside or beside, the vision tower with or without "vision_model.".  All are read; the
published one (llava-hf/llava-1.5-7b-hf) is written.

Queries, keys and values are three tensors there and one `in_proj` here, in that order.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from contracts.errors import ModelError

# transformers' name of a vision weight, and ours; {} is the number of a block.
TOWER = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
JOINED = ("q_proj", "k_proj", "v_proj")
# A buffer that old files hold.
IGNORED = ("embeddings.position_ids", "rotary_emb.inv_freq")


def from_transformers(weights: Mapping[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """Tensors by our names.

    Args:
        weights: by transformers' names.
        tied: whether the head is the embedding; then a head in the file is left out.

    Raises:
        ModelError: a name is unknown, or of queries, keys and values one is missing.
    """
    ours: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        if name.endswith(IGNORED):
            continue
        part, own = _split(name)
        if part == "projector":
            ours[f"projector.{own}"] = weight
        elif part == "decoder":
            if not (tied and own == "lm_head.weight"):
                ours[f"decoder.{own}"] = weight
        elif own in TOWER:
            ours[f"visual.{TOWER[own]}"] = weight
        else:
            block, inner, kind = _block(name, own)
            at = f"visual.transformer.resblocks.{block}."
            if inner in BLOCK:
                ours[f"{at}{BLOCK[inner]}.{kind}"] = weight
            else:
                joined.setdefault(f"{at}attn.in_proj_{kind}", {})[inner.removeprefix("self_attn.")] = weight
    for name, pieces in joined.items():
        if set(pieces) != set(JOINED):
            raise ModelError(f"of queries, keys and values of {name} one is missing or unknown")
        ours[name] = torch.cat([pieces[own] for own in JOINED])
    return ours


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the published names; those of the text tower and `visual.proj` are left out.

    Args:
        weights: by our names.
    """
    tower = {ours: theirs for theirs, ours in TOWER.items()}
    block = {ours: theirs for theirs, ours in BLOCK.items()}
    theirs: dict[str, Tensor] = {}
    for name, weight in weights.items():
        part, _, own = name.partition(".")
        if part == "projector":
            theirs[f"multi_modal_projector.{own}"] = weight
        elif part == "decoder":
            theirs[f"language_model.{own}"] = weight
        elif part != "visual" or own == "proj":
            continue
        elif own in tower:
            theirs[f"vision_tower.vision_model.{tower[own]}"] = weight
        else:
            number, inner = own.removeprefix("transformer.resblocks.").split(".", 1)
            at = f"vision_tower.vision_model.encoder.layers.{number}."
            if inner.startswith("attn.in_proj_"):
                kind = inner.removeprefix("attn.in_proj_")
                for piece, third in zip(JOINED, weight.chunk(3), strict=True):
                    theirs[f"{at}self_attn.{piece}.{kind}"] = third
            else:
                module, kind = inner.rsplit(".", 1)
                theirs[f"{at}{block[module]}.{kind}"] = weight
    return theirs


def _split(name: str) -> tuple[str, str]:
    """Which part a weight belongs to, and its name there."""
    plain = name.removeprefix("model.")
    for prefix, part in (("multi_modal_projector.", "projector"), ("vision_tower.", "tower")):
        if plain.startswith(prefix):
            return part, plain.removeprefix(prefix).removeprefix("vision_model.")
    if plain == "lm_head.weight":
        return "decoder", plain
    if plain.startswith("language_model."):
        own = plain.removeprefix("language_model.")
        return "decoder", own if own.startswith(("model.", "lm_head.")) else f"model.{own}"
    raise ModelError(f"{name} is no weight of a LLaVA")


def _block(name: str, own: str) -> tuple[str, str, str]:
    """Number of the block, module and kind (weight or bias) of a weight of a transformer block."""
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", own)
    known = {*BLOCK, *(f"self_attn.{piece}" for piece in JOINED)}
    if found is None or found[2] not in known:
        raise ModelError(f"{name} is no weight of a CLIP vision tower")
    return found[1], found[2], found[3]
