"""What a diffusion model's UNet reads of a CLIP text tower: the states of all its tokens.

A UNet's cross-attention does not read the pooled feature that CLIP compares with images, but the
hidden states of every token, padding included, after some block; SDXL reads the pooled feature of its
second tower beside them.  Which weights that depends on is told by `Reads`:

    model                          blocks          normed  pooled
    SD 1.5                         12 of 12        yes     no
    SD 2.1                         23 of 24        yes     no
    SDXL, first tower              11 of 12        no      no
    SDXL, second tower             31 of 32        no      yes: block 32, final norm and projection count too

A weight that comes later than what is read changes no picture, so it is no candidate: the published
SLUG code edits such layers (the text projection, and the last blocks of SD 2.1) without effect.

The towers are open_clip's, under its names, with or without the vision tower that they were trained
with.  Of the difference between HF's and open_clip's tokenizers only the padding matters here.

Shapes: N texts, L context length, W tower width, P width of the pooled feature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from unlearning.families import CandidateLayer, clip_config
from unlearning.families.clip import EXCLUDED, ClipModel, tower_of
from unlearning.families.config import check_weights, section
from unlearning.graph import reached
from unlearning.inplace import requiring_grad


@dataclass(frozen=True)
class Reads:
    """What of a text tower is read.

    Attributes:
        blocks: the token states after this many blocks.
        normed: whether the final norm follows.
        pooled: whether the projected feature at the end token, after all blocks, is read too.
        padding: token id that follows the end token up to the context length.
    """

    blocks: int
    normed: bool
    pooled: bool
    padding: int


class TextTower(nn.Module):
    """open_clip's text tower alone, under the names it has inside a `CLIP`.

    Args:
        embed_dim: width of the projection; 0 for none.
        text_cfg: as in a CLIP's configuration.
        quick_gelu: OpenAI's approximation of the activation.

    Raises:
        ModelError: `text_cfg` is not of a causal tower of open_clip's own.
    """

    def __init__(self, embed_dim: int, text_cfg: Mapping[str, Any], quick_gelu: bool) -> None:
        from open_clip.model import CLIPTextCfg, _build_text_tower

        super().__init__()
        foreign = [name for name in clip_config.FOREIGN if text_cfg.get(name) is not None]
        if foreign:
            raise ModelError(f"text_cfg: a tower given by {foreign[0]} is not supported")
        try:
            with torch.random.fork_rng(devices=[]):
                text: Any = _build_text_tower(embed_dim, CLIPTextCfg(**text_cfg), quick_gelu)
        except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError):
            raise ModelError("text_cfg is not a configuration of an open_clip text tower") from None
        if text.pool_type != "argmax" or text.attn_mask is None:
            raise ModelError("only a causal text tower pooled at the end-of-text token is supported")
        self.transformer, self.ln_final = text.transformer, text.ln_final
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.text_projection, self.vocab_size = text.text_projection, text.vocab_size
        self.context_length = text.context_length
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)


class TextEncoder:
    """One text tower of a diffusion model, without or (`ConditioningClip`) with its vision tower.

    Args:
        config: an entry of `clips` in the model's configuration.
        weights: state dict under open_clip's names, floating-point tensors in fp32.
        vocabulary: bytes of the vocabulary file, or None for open_clip's own vocabulary.
        device: where the weights live.

    Raises:
        ModelError: configuration and weights do not make a finite tower.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        vocabulary: bytes | None,
        device: torch.device | str,
    ) -> None:
        self.reads = reads_from(config)
        self.clip: ConditioningClip | None = None
        self.net: Any
        if config["model_cfg"].get("vision_cfg") is not None:
            self.clip = ConditioningClip(config, weights, vocabulary, device)
            self.net, self._tokenizer = self.clip.net, self.clip.tokenize
        else:
            cfg = {name: value for name, value in config["model_cfg"].items() if name != "vision_cfg"}
            self.net = TextTower(
                cfg.get("embed_dim", 0), section(cfg, "text_cfg"), cfg.get("quick_gelu", False)
            )
            check_weights(self.net.state_dict(), weights)
            self.net.load_state_dict(weights)
            self.net.to(device).eval().requires_grad_(False)
            self._tokenizer = clip_config.build_tokenizer(config, vocabulary, self.net)
        _check_reads(self.reads, self.net)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The tower's weights, and those of its vision tower where it has one."""
        return dict(self.net.named_parameters())

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (N, L) on the CPU: start token, text, end token, the padding that the UNet is used to."""
        ids: Tensor = self._tokenizer(list(texts))
        ends = ids.argmax(dim=-1, keepdim=True)
        padding = torch.arange(ids.shape[1]) > ends
        return torch.where(padding, torch.full_like(ids, self.reads.padding), ids)

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token states (N, L, W), and the pooled feature (N, P) if it is read; see `token_states`."""
        return token_states(self.net, tokens, self.reads)

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """The weights that a method may edit: by name those of `ClipModel`, and used by what is read."""
        return read_layers(self.net, self.reads)


class ConditioningClip(ClipModel):
    """A whole CLIP whose text tower a UNet reads: candidates are weights that pictures depend on.

    Every method for `ClipModel` runs on it.  Its features are those of the whole CLIP, also where the
    UNet reads an earlier block: gradients that reach a candidate through the rest of the tower are the
    paper's way of asking what the text tower knows.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        vocabulary: bytes | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__({"schema": 1, "family": clip_config.FAMILY, **config}, weights, vocabulary, device)
        reads = reads_from(config)
        _check_reads(reads, self.net)
        self._read_layers = read_layers(self.net, reads)

    def candidates(self) -> tuple[CandidateLayer, ...]:
        """The weights of the text tower that a method may edit and that pictures depend on."""
        return self._read_layers

    def may_edit(self, layer: str) -> bool:
        """Whether it is one of the candidates."""
        return any(layer == candidate.name for candidate in self._read_layers)


def reads_from(config: Mapping[str, Any]) -> Reads:
    """The `reads` object of a text tower's configuration.

    Raises:
        InputError: a field is unknown, missing or of the wrong type.
    """
    from contracts.canonical import from_plain

    return from_plain(Reads, section(config, "reads"))


def token_states(net: Any, tokens: Tensor, reads: Reads) -> tuple[Tensor, Tensor | None]:
    """Token states (N, L, W) and the pooled feature (N, P), if read, of token ids (N, L); differentiable.

    Args:
        net: open_clip's `CLIP`, or `TextTower`.
        tokens: padded ids; the first of the highest id of a row is its end.
        reads: which states.
    """
    ids = tokens.to(net.positional_embedding.device)
    x = net.token_embedding(ids) + net.positional_embedding
    blocks = net.transformer.resblocks
    for block in blocks[: reads.blocks]:
        x = block(x, attn_mask=net.attn_mask)
    states: Tensor = net.ln_final(x) if reads.normed else x
    if not reads.pooled:
        return states, None
    for block in blocks[reads.blocks :]:
        x = block(x, attn_mask=net.attn_mask)
    ends = x[torch.arange(len(x), device=x.device), ids.argmax(dim=-1)]
    pooled: Tensor = net.ln_final(ends) @ net.text_projection
    return states, pooled


def read_layers(net: Any, reads: Reads) -> tuple[CandidateLayer, ...]:
    """The editable weights that the conditioning of a text depends on, as its graph tells."""
    named = {
        name: weight
        for name, weight in net.named_parameters()
        if tower_of(name) == "text" and not any(word in name for word in EXCLUDED)
    }
    tokens = torch.zeros(1, net.context_length, dtype=torch.long)
    with requiring_grad(net, named), torch.enable_grad():
        states, pooled = token_states(net, tokens, reads)
        used = reached([states] if pooled is None else [states, pooled], named)
    return tuple(
        CandidateLayer(name, "text", tuple(weight.shape), weight.numel())
        for name, weight in named.items()
        if name in used
    )


def _check_reads(reads: Reads, net: Any) -> None:
    n_blocks = len(net.transformer.resblocks)
    if not 1 <= reads.blocks <= n_blocks:
        raise ModelError(
            f"reads: the tower has {n_blocks} blocks, token states after {reads.blocks} of them are asked"
        )
    if not 0 <= reads.padding < net.vocab_size:
        raise ModelError(f"reads: padding {reads.padding} is no token of {net.vocab_size}")
    if reads.pooled and not isinstance(net.text_projection, nn.Parameter):
        raise ModelError("reads: a pooled feature needs a text_projection")
