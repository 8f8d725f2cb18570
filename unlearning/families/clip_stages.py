"""The towers of open_clip's models as sequences of stages (`staged_tower`).

Savings, all exact (no activation that can reach the feature is dropped): in the last block of a transformer
only the token that is pooled needs a query and an MLP; the last MLP of a text tower is two stages, so that
an edit of its second matrix leaves the first one alone; and in a causal text tower pooled at the end-of-text
token (EOT)

* tokens after EOT cannot influence it, so texts are grouped by length and never padded;
* the tokens that a template's texts begin with are computed once per template, as in prefix
  caching of language models.

Results differ from open_clip's own forward pass only by the order of floating-point sums.

Shapes: n rows, G prefixes, P tokens of a prefix, S own tokens, W tower width, D embedding width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from unlearning.families.staged_tower import Batch, StagedTower, row_stage
from unlearning.families.stages import Stage


def vision_tower(visual: Any, preprocess: Callable[[Tensor], Tensor]) -> StagedTower:
    """The stages of an open_clip `VisionTransformer` or `ModifiedResNet`.

    Args:
        visual: `model.visual`.
        preprocess: uint8 images (n, H, W, 3) to model input (n, 3, size, size); part of the first
            stage, so that images wait as bytes and not as floats.

    Raises:
        ModelError: the tower is of another kind.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import VisionTransformer

    if isinstance(visual, ModifiedResNet):
        stem = tuple(f"visual.{part}{i}." for part in ("conv", "bn") for i in (1, 2, 3))
        stages = [row_stage(stem, lambda x: visual.stem(preprocess(x)))]
        for group in ("layer1", "layer2", "layer3", "layer4"):
            for i, block in enumerate(getattr(visual, group)):
                stages.append(row_stage((f"visual.{group}.{i}.",), block))
        stages.append(row_stage(("visual.attnpool.",), visual.attnpool))
        return StagedTower(tuple(stages))
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.output_tokens:
        raise ModelError(
            f"a vision tower of type {type(visual).__name__} with these options is not supported"
        )

    stages = [row_stage(("visual.conv1.", "visual.ln_pre."), lambda x: visual._embeds(preprocess(x)))]
    for i, block in enumerate(visual.transformer.resblocks):
        _check_block(block)
        at = f"visual.transformer.resblocks.{i}."
        first_only = visual.pool_type == "tok" and i == len(visual.transformer.resblocks) - 1
        attend = _self_attention(block, first_only)
        stages.append(row_stage((f"{at}ln_1.", f"{at}attn.", f"{at}ls_1."), attend))
        stages.append(row_stage((f"{at}ln_2.", f"{at}mlp.", f"{at}ls_2."), _mlp(block)))
    stages.append(row_stage(("visual.ln_post.", "visual.proj"), lambda x: visual._pool(x)[0] @ visual.proj))
    return StagedTower(tuple(stages))


def text_tower(net: Any) -> StagedTower:
    """The stages of an open_clip `CLIP`'s causal text tower (transformer, ln_final, text_projection).

    Raises:
        ModelError: the tower is not causal or not pooled at the end-of-text token.
    """
    if net.text_pool_type != "argmax" or net.attn_mask is None:
        raise ModelError("only a causal text tower pooled at the end-of-text token is supported")
    stages = []
    blocks = net.transformer.resblocks
    for i, block in enumerate(blocks):
        _check_block(block)
        at, is_last = f"transformer.resblocks.{i}.", i == len(blocks) - 1
        attend = _causal_attention(block, net.attn_mask, eot_only=is_last)
        stages.append(Stage((f"{at}ln_1.", f"{at}attn.", f"{at}ls_1."), attend))
        if is_last:
            stages += _halves(block, at)
        else:
            mlp = _on_own_and_prefixes(_mlp(block))
            stages.append(Stage((f"{at}ln_2.", f"{at}mlp.", f"{at}ls_2."), mlp))
    stages.append(
        Stage(("ln_final.", "text_projection"), lambda batch: replace(batch, own=_text_head(net, batch.own)))
    )
    return StagedTower(tuple(stages))


def text_lengths(net: Any, tokens: Tensor) -> Tensor:
    """(n,) tokens of each text (n, context) up to EOT, the highest id of a row."""
    return tokens.argmax(dim=-1) + 1


def text_features(net: Any, tokens: Tensor) -> Tensor:
    """(n, D) what `net.encode_text` makes of texts; its forward pass, without the padding that all have.

    Args:
        net: the open_clip `CLIP` model.
        tokens: (n, context) ids, padded after EOT, the highest id of a row.
    """
    ends = text_lengths(net, tokens) - 1
    n = int(ends.max()) + 1
    x = net.token_embedding(tokens[:, :n].to(net.positional_embedding.device)) + net.positional_embedding[:n]
    x = net.ln_final(net.transformer(x, attn_mask=net.attn_mask[:n, :n]))
    return _projected(net, x[torch.arange(len(x)), ends])


def text_batches(net: Any, tokens: Tensor, groups: Tensor) -> list[Batch]:
    """Embedded texts, one batch per length and prefix length; token and position embeddings are never edited.

    Args:
        net: the open_clip `CLIP` model.
        tokens: (n, context) ids, padded after EOT, the highest id of a row.
        groups: (n,) rows of equal value are expected to begin alike (one template).
    """
    lengths = text_lengths(net, tokens)
    n_shared = torch.empty_like(lengths)
    for group in torch.unique(groups):
        rows = torch.nonzero(groups == group).flatten()
        alike = (tokens[rows] == tokens[rows[0]]).all(dim=0)
        # EOT itself stays a row's own token, also where rows agree on every token.
        n_shared[rows] = torch.minimum(alike.long().cumprod(0).sum(), lengths[rows].min() - 1)
    batches = []
    kinds = torch.unique(torch.stack([lengths, n_shared], dim=1), dim=0)
    for length, shared in kinds.tolist():
        rows = torch.nonzero((lengths == length) & (n_shared == shared)).flatten()
        ids, places = tokens[rows, :length], net.positional_embedding[:length]
        heads, prefix = torch.unique(ids[:, :shared], dim=0, return_inverse=True)
        own = net.token_embedding(ids[:, shared:].to(places.device)) + places[shared:]
        prefixes = net.token_embedding(heads.to(places.device)) + places[:shared]
        batches.append(Batch(rows, own, prefixes, prefix))
    return batches


def _check_block(block: nn.Module) -> None:
    from open_clip.transformer import ResidualAttentionBlock

    if not isinstance(block, ResidualAttentionBlock) or not block.attn.batch_first:
        raise ModelError(f"transformer blocks of type {type(block).__name__} are not supported")


def _self_attention(block: Any, first_only: bool) -> Callable[[Tensor], Tensor]:
    """Residual attention; `first_only` leaves the first token alone, the one that a head is to read."""

    def attend(x: Tensor) -> Tensor:
        tokens = block.ln_1(x)
        # One object as queries, keys and values: torch then makes one product of them.
        queries = tokens[:, :1] if first_only else tokens
        attended: Tensor = block.ls_1(block.attention(queries, tokens, tokens))
        return x[:, : queries.shape[1]] + attended

    return attend


def _mlp(block: Any) -> Callable[[Tensor], Tensor]:
    return lambda x: x + block.ls_2(block.mlp(block.ln_2(x)))


def _halves(block: Any, at: str) -> list[Stage[Batch]]:
    """The last MLP up to its second matrix, and from there on; what passes by goes with what enters it.

    Closed-form edits change that matrix, and at the one token that is pooled what enters it is small.
    """
    inner = block.mlp.c_proj.in_features

    def begin(x: Tensor) -> Tensor:
        return torch.cat([block.mlp.gelu(block.mlp.c_fc(block.ln_2(x))), x], dim=-1)

    def end(x: Tensor) -> Tensor:
        out: Tensor = x[..., inner:] + block.ls_2(block.mlp.c_proj(x[..., :inner]))
        return out

    return [
        row_stage((f"{at}ln_2.", f"{at}mlp.c_fc."), begin),
        row_stage((f"{at}mlp.c_proj.", f"{at}ls_2."), end),
    ]


def _on_own_and_prefixes(run: Callable[[Tensor], Tensor]) -> Callable[[Batch], Batch]:
    def both(batch: Batch) -> Batch:
        if batch.prefixes is None:
            return replace(batch, own=run(batch.own))
        # In one go: few tokens take as long as reading the weights does, and prefixes are few.
        heads, own = batch.prefixes.flatten(0, 1), batch.own.flatten(0, 1)
        tokens = run(torch.cat([heads, own]))
        return replace(
            batch,
            prefixes=tokens[: len(heads)].view_as(batch.prefixes),
            own=tokens[len(heads) :].view_as(batch.own),
        )

    return both


def _causal_attention(block: Any, mask: Tensor, eot_only: bool) -> Callable[[Batch], Batch]:
    """Residual attention of own tokens over prefix and own ones; `mask` (context, context) is additive."""

    def attend(batch: Batch) -> Batch:
        assert batch.prefixes is not None
        heads = block.ln_1(batch.prefixes)
        queries = block.ln_1(batch.own)
        keys = torch.cat([heads[batch.prefix], queries], dim=1)
        if eot_only:
            # EOT is a row's last token, so it sees every token and needs no mask; nothing reads the others.
            own = batch.own[:, -1:] + block.ls_1(block.attention(queries[:, -1:], keys, keys))
            return replace(batch, own=own, prefixes=None)
        n_prefix, n_all = heads.shape[1], keys.shape[1]
        own = batch.own + block.ls_1(block.attention(queries, keys, keys, mask[n_prefix:n_all, :n_all]))
        inner = block.attention(heads, attn_mask=mask[:n_prefix, :n_prefix])
        return replace(batch, own=own, prefixes=batch.prefixes + block.ls_1(inner))

    return attend


def _text_head(net: Any, own: Tensor) -> Tensor:
    return _projected(net, net.ln_final(own[:, -1]))


def _projected(net: Any, pooled: Tensor) -> Tensor:
    if net.text_projection is None:
        return pooled
    if isinstance(net.text_projection, nn.Linear):
        projected: Tensor = net.text_projection(pooled)
        return projected
    features: Tensor = pooled @ net.text_projection
    return features
