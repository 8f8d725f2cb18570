"""What items put into a matrix of a CLIP tower, their keys, and what there is after it.

An item has a key at each of its positions, and its feature reads them with some weights; the item's key is
their weighted sum.  To add D to the matrix then adds D key to the item's output, exactly.

    open_clip's text tower    `mlp.c_proj` of the last block, the last matrix with a nonlinearity before it.
                              Weight 1 at the end token: no other reaches the feature.  The output is the
                              block's, with everything that passes by the matrix.  Where the model lets edit
                              only earlier blocks (`ClipModel.may_edit`: an SDXL tower is read before its
                              end), it is the last of those.  Later blocks' attention then reads the other
                              tokens too, so the key is not all that the feature depends on: it and the
                              output are those of the end token, the position that is pooled, alone.
    BERT of `clip_timm_hf`    `output.dense` of the last layer.  Of all L tokens the feature reads the mean
                              of LayerNorm(u_t), where u_t = W k_t + b + what passes by.  The norm divides
                              every token by its own deviation s_t, so the mean is one of u_t / s_t (the
                              norm's gain, offset and centring are the same for all tokens): the weights
                              are 1 / (L s_t), and the output is the weighted sum of the u_t.  Being
                              weights, the s_t are those before an edit; that it changes them too is left
                              to the step search, which runs the real tower.
    vision towers             the projection that makes the features, at the one pooled position.

Shapes: n items, L positions of an item, d inputs and o outputs of the matrix.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from contracts.values import Tower
from unlearning.families.clip import ClipModel
from unlearning.linear_layers import LinearLayer, linear_layers

_NAMES: Mapping[Tower, str] = {
    "text": r"transformer\.resblocks\.\d+\.mlp\.c_proj\.weight"
    r"|text\.transformer\.encoder\.layer\.\d+\.output\.dense\.weight",
    "vision": r"visual\.(attnpool\.c_proj\.weight|proj|head\.proj\.weight)",
}


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys (n, d) of items and their outputs (n, o), both in fp64; a change D of the matrix adds D key."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class KeyedMatrix:
    """A matrix, and how the feature reads its positions.

    Attributes:
        layer: the matrix.
        after: the module whose calls show what there is after the matrix.
        outputs: that, (n, L, o), of such a call: its arguments and its output.
        weights: of positions (n, L), from those outputs and the lengths (n,) of the items.
    """

    layer: LinearLayer
    after: nn.Module
    outputs: Callable[[tuple[Any, ...], Any], Tensor]
    weights: Callable[[Tensor, Tensor], Tensor]


def keyed_matrix(model: ClipModel, tower: Tower) -> KeyedMatrix:
    """The last matrix of a tower that can be rewritten and that the model lets edit, as told above.

    Raises:
        ModelError: the towers are of other types.
    """
    from open_clip.hf_model import HFTextEncoder, MeanPooler
    from open_clip.model import CLIP

    net: Any = model.net
    text = net if isinstance(net, CLIP) else getattr(net, "text", net)
    pooled = isinstance(text, HFTextEncoder) and isinstance(text.pooler, MeanPooler)
    if not (isinstance(text, CLIP) or pooled):
        raise ModelError(
            "uce rewrites models with open_clip's own text tower or a mean-pooled BERT, "
            f"this one has a {type(text).__name__}"
        )
    layers = [found for found in linear_layers(model) if re.fullmatch(_NAMES[tower], found.weight)]
    if not layers:
        raise ModelError(f"the {tower} tower has no matrix that uce rewrites and the model lets edit")
    layer = layers[-1]
    if tower == "vision":
        return KeyedMatrix(layer, net.visual, lambda args, out: out[:, None], _all)
    if not pooled:
        block = net.get_submodule(layer.weight.removesuffix(".mlp.c_proj.weight"))
        return KeyedMatrix(layer, block, lambda args, out: out, _last)
    norm = text.transformer.encoder.layer[-1].output.LayerNorm
    return KeyedMatrix(layer, norm, lambda args, out: args[0], partial(_normed_mean, eps=norm.eps))


@torch.no_grad()
def keys(model: ClipModel, tower: Tower, items: Sequence[str] | Tensor, micro_batch: int) -> Keys:
    """Keys and outputs of items: texts, or uint8 images (n, H, W, 3).

    Args:
        model: at the weights to look at; they stay as they are.
        tower: which one reads the items.
        items: what it reads.
        micro_batch: items at a time; decides memory, not the result.

    Raises:
        ModelError: see `keyed_matrix`.
    """
    matrix = keyed_matrix(model, tower)
    seen: dict[str, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen["inputs"] = matrix.layer.seen(module, args, kwargs, output)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen["outputs"] = matrix.outputs(args, output)

    if isinstance(items, Tensor):
        read, lengths = items, torch.ones(len(items), dtype=torch.long)
    else:
        read = model.tokenize(items)
        lengths = model.text_lengths(read)
    # Texts of a length together: a piece is as long as its longest one.
    order = lengths.argsort(stable=True)
    inputs, outputs = [], []
    handles = [
        matrix.layer.module.register_forward_hook(before, with_kwargs=True),
        matrix.after.register_forward_hook(after),
    ]
    try:
        for rows in torch.split(order, micro_batch):
            if tower == "text":
                model.text_features(read[rows])
            else:
                model.image_features(model.preprocess(read[rows]))
            entering, leaving = seen["inputs"].double(), seen["outputs"].double()
            weights = matrix.weights(leaving, lengths[rows].to(leaving.device))[:, None]
            inputs.append((weights @ entering)[:, 0])
            outputs.append((weights @ leaving)[:, 0])
    finally:
        for handle in handles:
            handle.remove()
    back = order.argsort().to(inputs[0].device)
    return Keys(torch.cat(inputs)[back], torch.cat(outputs)[back])


def _all(outputs: Tensor, lengths: Tensor) -> Tensor:
    return outputs.new_ones(outputs.shape[:2])


def _last(outputs: Tensor, lengths: Tensor) -> Tensor:
    places = torch.arange(outputs.shape[1], device=outputs.device)
    return (places == lengths[:, None] - 1).to(outputs)


def _normed_mean(outputs: Tensor, lengths: Tensor, eps: float) -> Tensor:
    places = torch.arange(outputs.shape[1], device=outputs.device)
    deviations = (outputs.var(dim=2, correction=0) + eps).sqrt()
    return (places < lengths[:, None]) / (lengths[:, None] * deviations)
