"""The language model of a vision-language model and the projector before it: made, and given their weights.

Shapes: N rows, T image tokens, C channels, W decoder width.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import ModelError
from unlearning.families.config import HALVES, check_weights
from unlearning.families.vlm_config import DecoderCfg, ProjectorCfg, VlmConfig

PARTS = ("projector.", "decoder.")
"""What the names of their weights begin with."""


class Projector(nn.Module):
    """Features (N, T, C) to image tokens (N, T, W): two linear layers, as transformers' LLaVA names them."""

    def __init__(self, width: int, decoder_width: int, cfg: ProjectorCfg) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, decoder_width, bias=cfg.bias)
        self.linear_2 = nn.Linear(decoder_width, decoder_width, bias=cfg.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Image tokens of features."""
        tokens: Tensor = self.linear_2(functional.gelu(self.linear_1(features)))
        return tokens


def llama_config(cfg: DecoderCfg) -> Any:
    """transformers' configuration of the decoder."""
    from transformers import LlamaConfig

    options = asdict(cfg)
    del options["model_type"]
    rope = {"rope_type": "default", "rope_theta": options.pop("rope_theta")}
    return LlamaConfig(**options, rope_parameters=rope)


def build_decoder(cfg: DecoderCfg) -> Any:
    """A `LlamaForCausalLM` on the meta device: shapes, no weights; see `materialise`.

    Raises:
        ModelError: the sizes contradict each other.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import LlamaForCausalLM

    try:
        with torch.device("meta"):
            return LlamaForCausalLM(llama_config(cfg))
    except (StrictDataclassError, TypeError, ValueError, RuntimeError, ZeroDivisionError):
        raise ModelError("decoder: the sizes do not make a Llama") from None


def materialise(decoder: Any, weights: Mapping[str, Tensor]) -> Any:
    """Give a decoder built on the meta device its weights; they are not copied."""
    decoder.load_state_dict(weights, strict=False, assign=True)
    decoder.tie_weights()
    rotary = decoder.model.rotary_emb
    # Its frequencies stand in no file.
    decoder.model.rotary_emb = type(rotary)(decoder.config)
    return decoder


def expected_weights(decoder: Any) -> dict[str, Tensor]:
    """What a file holds of a decoder: a head tied to the embedding is no tensor of its own."""
    state: dict[str, Tensor] = decoder.state_dict()
    if decoder.config.tie_word_embeddings:
        del state["lm_head.weight"]
    return state


def language_parts(cfg: VlmConfig, width: int, weights: Mapping[str, Tensor]) -> tuple[Projector, Any]:
    """Projector and decoder with their weights.

    Raises:
        ModelError: a weight is missing, mis-shaped, mis-typed or not finite.
    """
    with torch.device("meta"):
        projector = Projector(width, cfg.decoder.hidden_size, cfg.projector)
    decoder = build_decoder(cfg.decoder)
    own: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, weight in weights.items():
        for part in PARTS:
            if name.startswith(part):
                own[part][name.removeprefix(part)] = weight
    dtype = next((w.dtype for w in own["decoder."].values() if w.dtype in HALVES), torch.float32)
    check_weights(projector.state_dict(), own["projector."])
    check_weights(expected_weights(decoder.to(dtype)), own["decoder."])
    # A module must own its weights: an edit of one model must not reach another one.
    projector.load_state_dict({n: w.clone() for n, w in own["projector."].items()}, assign=True)
    return projector, materialise(decoder, {n: w.clone() for n, w in own["decoder."].items()})
