"""The matrices that are the first of a UNet to read a text, and what enters them.

    keys and values of cross-attention       token states, the same for all of them
    `add_embedding`, attention pooling       query, key and value; normed token states, for query their mean
    `add_embedding` of SDXL                  `linear_1`; the pooled feature beside the picture's sizes

What follows these in `add_embedding` reads what they give.  What enters them depends on the text alone, not
on the picture or on the noise, so no picture is needed to know it.

Shapes: N texts, R rows (one or more for each text), d inputs of a matrix.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn

from unlearning.families.diffusion import CROSS_ATTENTION, Conditioning, DiffusionModel

_EMBEDDING = re.compile(r"unet\.add_embedding\.(pool\.[qkv]_proj|linear_1)\.weight")


@torch.no_grad()
def text_inputs(model: DiffusionModel, told: Conditioning) -> dict[tuple[str, ...], Tensor]:
    """Rows (R, d), text by text, by the names of the weights (o, d) that read them.

    Matrices that read the same stand together, in an order that does not depend on the texts.
    """
    names = [candidate.name for candidate in model.candidates() if candidate.tower == "unet"]
    found = {tuple(name for name in names if name.endswith(CROSS_ATTENTION)): told.states.flatten(0, 1)}
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name] = args[0]

        return model.net.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook)

    handles = [watch(name) for name in names if _EMBEDDING.fullmatch(name)]
    try:
        model.unet.get_aug_embed(told.states, told.states, model.beside(told))
    finally:
        for handle in handles:
            handle.remove()
    for tensor in {id(tensor): tensor for tensor in seen.values()}.values():
        readers = tuple(name for name, own in seen.items() if own is tensor)
        found[readers] = tensor.reshape(-1, tensor.shape[-1])
    return found
