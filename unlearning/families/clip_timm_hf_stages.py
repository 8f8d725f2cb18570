"""The stages of pretrained towers (`clip_timm_hf`): the blocks of an EfficientNet, the half layers of a BERT.

Nothing after a token can be left out as in a causal tower: every token sees all others, and the
feature is the mean over them.  So texts share no prefix, and the savings beside the kept activations
are that texts are grouped by length and never padded, which is exact: open_clip masks padding out of
attention and mean; and that the last MLP is two stages.

Shapes: n rows, S tokens of a text, L context length, W tower width, D embedding width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contracts.errors import ModelError
from unlearning.families.staged_tower import Batch, StagedTower, row_stage


def vision_tower(visual: Any, preprocess: Callable[[Tensor], Tensor]) -> StagedTower:
    """Stem, one stage per block, the last convolution with the pooling, the projection.

    Args:
        visual: `model.visual`, an open_clip `TimmModel` of an EfficientNet.
        preprocess: uint8 images (n, H, W, 3) to model input (n, 3, size, size).

    Raises:
        ModelError: the trunk is another network.
    """
    from timm.models import EfficientNet

    trunk: Any = visual.trunk
    if not isinstance(trunk, EfficientNet):
        raise ModelError(f"a vision tower of type {type(trunk).__name__} is not supported")

    def stem(images: Tensor) -> Tensor:
        features: Tensor = trunk.bn1(trunk.conv_stem(preprocess(images)))
        return features

    at = "visual.trunk."
    stages = [row_stage((f"{at}conv_stem.", f"{at}bn1."), stem)]
    groups: Any = trunk.blocks
    for i, group in enumerate(groups):
        stages += [row_stage((f"{at}blocks.{i}.{j}.",), block) for j, block in enumerate(group)]
    stages.append(
        row_stage(
            (f"{at}conv_head.", f"{at}bn2."), lambda x: trunk.forward_head(trunk.bn2(trunk.conv_head(x)))
        )
    )
    stages.append(row_stage(("visual.head.",), visual.head))
    return StagedTower(tuple(stages))


def text_tower(net: Any) -> StagedTower:
    """Attention and MLP of every layer, the last MLP in two halves, the mean, the projection."""
    stages = []
    layers = net.text.transformer.encoder.layer
    for i, layer in enumerate(layers):
        at = f"text.transformer.encoder.layer.{i}."
        stages.append(row_stage((f"{at}attention.",), _attention(layer)))
        if i == len(layers) - 1:
            begin, end = _halves(layer)
            stages.append(row_stage((f"{at}intermediate.",), begin))
            stages.append(row_stage((f"{at}output.",), end))
        else:
            stages.append(row_stage((f"{at}intermediate.", f"{at}output."), layer.feed_forward_chunk))
    stages.append(row_stage((), lambda x: x.mean(dim=1)))
    stages.append(row_stage(("text.proj.",), net.text.proj))
    return StagedTower(tuple(stages))


def text_lengths(net: Any, tokens: Tensor) -> Tensor:
    """(n,) tokens of each text (n, L) without its padding."""
    lengths: Tensor = (tokens != net.text.config.pad_token_id).sum(dim=1)
    return lengths


def text_features(net: Any, tokens: Tensor) -> Tensor:
    """(n, D) what `net.encode_text` makes of texts, without the padding that all of them have.

    Args:
        net: the open_clip `CustomTextCLIP` model.
        tokens: (n, L) ids, padded at the end.
    """
    features: Tensor = net.encode_text(
        tokens[:, : int(text_lengths(net, tokens).max())].to(net.logit_scale.device)
    )
    return features


def text_batches(net: Any, tokens: Tensor, groups: Tensor) -> list[Batch]:
    """Embedded texts, one batch per length; embeddings are never edited.

    Args:
        net: the open_clip `CustomTextCLIP` model.
        tokens: (n, L) ids, padded at the end.
        groups: of no use here, see above.
    """
    lengths = text_lengths(net, tokens)
    embed, device = net.text.transformer.embeddings, net.logit_scale.device
    batches = []
    for length in torch.unique(lengths).tolist():
        rows = torch.nonzero(lengths == length).flatten()
        batches.append(Batch(rows, embed(input_ids=tokens[rows, :length].to(device))))
    return batches


def _halves(layer: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """An MLP up to its second matrix, and from there on; what passes by goes with what enters it.

    Closed-form edits change the second matrix of the last one.
    """
    inner = layer.output.dense.in_features
    return (
        lambda x: torch.cat([layer.intermediate(x), x], dim=-1),
        lambda x: layer.output(x[..., :inner], x[..., inner:]),
    )


def _attention(layer: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: layer.attention(x)[0]
