"""Teacher-forced answers of a vision-language model: what it expects before each token of a given answer.

Shapes: N answers, T image tokens, L tokens of the longest answer with its question, M tokens that count, W
decoder width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unlearning.families.vlm_decoder import embedded


@dataclass(frozen=True, eq=False)
class Forced:
    """The decoder before each of M tokens of given answers.

    Attributes:
        logits: (M, V) in fp32.
        ids: (M,) the tokens that come.
        rows: (M,) the answer that each belongs to, ascending.
        places: bool (N, L - 1 + T), true where in the decoder's inputs each of them is expected.
    """

    logits: Tensor
    ids: Tensor
    rows: Tensor
    places: Tensor


def forced(
    decoder: Any, image_token: int, tokens: Tensor, asked: Sequence[tuple[list[int], list[bool]]]
) -> Forced:
    """Run the decoder on N questions with their answers; differentiable.

    Args:
        decoder: the language model.
        image_token: id of the token that the image tokens replace.
        tokens: (N, T, W) of the images.
        asked: token ids and what counts, as `Chat.answered` gives them, for each image.
    """
    longest = max(len(ids) for ids, _ in asked)
    # Padding comes last, where a causal model's answers cannot see it.
    ids = torch.tensor([own + [0] * (longest - len(own)) for own, _ in asked], device=tokens.device)
    counts = torch.tensor([own + [False] * (longest - len(own)) for _, own in asked], device=tokens.device)
    states = decoder.model(inputs_embeds=embedded(decoder, ids, image_token, tokens)).last_hidden_state
    wanted = counts[:, 1:]
    # Answers come after the image: what stands before token i stands T - 1 places further on here.
    places = functional.pad(wanted, (tokens.shape[1] - 1, 1))
    logits = decoder.lm_head(states[places]).float()
    return Forced(logits, ids[:, 1:][wanted], wanted.nonzero()[:, 0], places)
