"""The words of a vision-language model: its tokenizer, how questions and answers are put, and said.

Shapes: N rows, T image tokens, L tokens of the longest row, W decoder width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning.families.vlm_config import ChatCfg, DecoderCfg
from unlearning.naming import with_article

# An answer ends here at the latest, as in the evaluation of SLUG (arXiv 2407.11867, section 4.3).
MAX_NEW_TOKENS = 16

Asked = tuple[list[int], list[bool]]
"""Token ids of a question with its answer, and which of them count; see `Chat.answered`."""


@dataclass(frozen=True)
class AnswerTask:
    """What is asked about an image, and the answer that gives a name.

    Attributes:
        question: the paper asks "What is the name of the person in the image?".
        article: whether the answer is "a bird" and not "bird".
    """

    question: str = "what is this?"
    article: bool = True

    def answer(self, name: str) -> str:
        """The answer that gives a name."""
        return with_article(name) if self.article else name

    def asked(self, chat: "Chat", name: str) -> tuple[list[int], list[bool]]:
        """Token ids of the question with its answer; those of the name count."""
        return chat.answered(self.question, self.answer(name), counted=name)


class Chat:
    """Questions and answers to token ids and back.

    Args:
        tokenizer: content of a `tokenizer.json`.
        cfg: the prompt.
        decoder: the tokenizer must not have more tokens than it embeds.

    Raises:
        ModelError: the file is no tokenizer, has too many tokens or not the image token.
    """

    def __init__(self, tokenizer: bytes, cfg: ChatCfg, decoder: DecoderCfg) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer)
        except ValueError:
            raise ModelError("the decoder's tokenizer is not a tokenizer file") from None
        size = self._tokenizer.get_vocab_size()
        if size > decoder.vocab_size:
            raise ModelError(f"the tokenizer has {size} tokens, the decoder embeds {decoder.vocab_size}")
        image = self._tokenizer.token_to_id(cfg.image_token)
        if image is None or self._tokenizer.encode(cfg.image_token, add_special_tokens=False).ids != [image]:
            raise ModelError(f"{cfg.image_token!r} is no token of the tokenizer")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._cfg, self.image_token, self._end = cfg, int(image), decoder.eos_token_id
        self.asks = AnswerTask(cfg.question, cfg.article)

    def prompt(self, question: str) -> list[int]:
        """Token ids of a question as it is put to the model, with one image token.

        Raises:
            InputError: the question holds the image token.
        """
        if self._cfg.image_token in question:
            raise InputError(f"a question must not hold {self._cfg.image_token!r}")
        ids: list[int] = self._tokenizer.encode(self._cfg.prompt.replace("{}", question)).ids
        return ids

    def answered(
        self, question: str, answer: str, counted: str | None = None
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a question with its answer and the end, and which of them count in a loss.

        Args:
            question: as in `prompt`.
            answer: the whole answer.
            counted: the part of the answer whose tokens count; None for all of them, and the end.

        Raises:
            InputError: the answer does not hold the part.
        """
        before = self.prompt(question)
        put = self._cfg.prompt.replace("{}", question)
        encoded = self._tokenizer.encode(f"{put} {answer}")
        start = next((i for i, (a, b) in enumerate(zip(before, encoded.ids, strict=False)) if a != b), None)
        start = min(len(before), len(encoded.ids)) if start is None else start
        if counted is None:
            return [*encoded.ids, self._end], [i >= start for i in range(len(encoded.ids) + 1)]
        at = answer.rfind(counted)  # an article before a name may begin like it
        if at < 0 or not counted:
            raise InputError("the answer does not hold the part that is to count")
        first = len(put) + 1 + at
        counts = [
            i >= start and low < first + len(counted) and high > first
            for i, (low, high) in enumerate(encoded.offsets)
        ]
        return [*encoded.ids, self._end], [*counts, False]

    def text(self, ids: Sequence[int]) -> str:
        """The words of an answer: its token ids up to the end token."""
        ids = list(ids)
        ids = ids[: ids.index(self._end)] if self._end in ids else ids
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()


def embedded(decoder: Any, ids: Tensor, image_token: int, tokens: Tensor) -> Tensor:
    """(N, L - 1 + T, W) inputs of the decoder: the image token of each row becomes its T image tokens.

    Args:
        decoder: embeds the ids.
        ids: (N, L) with one image token in each row.
        image_token: its id; the decoder need not embed it.
        tokens: (N, T, W).
    """
    is_image = ids == image_token
    words = decoder.model.embed_tokens(ids.masked_fill(is_image, 0))
    n, length, width = words.shape
    after = torch.arange(length, device=ids.device) > is_image.int().argmax(1, keepdim=True)
    places = torch.arange(length, device=ids.device) + after * (tokens.shape[1] - 1)
    first = is_image.int().argmax(1, keepdim=True) + torch.arange(tokens.shape[1], device=ids.device)
    inputs = words.new_zeros(n, length - 1 + tokens.shape[1], width)
    # The image token itself comes first, and its image tokens replace it.
    inputs = inputs.scatter(1, places[..., None].expand(-1, -1, width), words)
    placed: Tensor = inputs.scatter(1, first[..., None].expand(-1, -1, width), tokens.to(words.dtype))
    return placed


@torch.no_grad()
def greedy(decoder: Any, inputs: Tensor, end: int, max_new_tokens: int = MAX_NEW_TOKENS) -> Tensor:
    """(N, at most `max_new_tokens`) ids of the likeliest next tokens, until every row has ended.

    What stands in a row after its end token means nothing.

    Args:
        decoder: the language model.
        inputs: (N, L, W) embedded prompts of equal length.
        end: id of the end token.
        max_new_tokens: at most this many.
    """
    said: list[Tensor] = []
    ended = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    past = None
    for _ in range(max_new_tokens):
        out = decoder(inputs_embeds=inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, token = out.past_key_values, out.logits[:, -1].argmax(-1)
        said.append(token)
        ended |= token == end
        if bool(ended.all()):
            break
        inputs = decoder.model.embed_tokens(token)[:, None]
    return torch.stack(said, dim=1)
