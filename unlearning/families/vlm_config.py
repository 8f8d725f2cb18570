"""What a vision-language model folder's `config.json` means.

    {"schema": 1, "family": "vlm",
     "clip": {"architecture": null, "model_cfg": {...}, "preprocess": {...}, "tokenizer": {...} | null},
     "reads": {"layer": -2, "class_token": false},
     "projector": {"act": "gelu", "bias": true},
     "decoder": {"model_type": "llama", "hidden_size": 4096, ...},
     "chat": {"prompt": "USER: <image>\\n{} ASSISTANT:", "image_token": "<image>"}}

`clip` is what the configuration of a CLIP model folder says; without a `tokenizer`, and without a
`text_cfg`, the folder holds the vision tower alone.  The classes below are all that the rest may say:
any other field, and any other value of a fixed one, is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from contracts.canonical import from_plain
from contracts.errors import InputError, ModelError

FAMILY = "vlm"


@dataclass(frozen=True)
class ClipPart:
    """A CLIP model, or its vision tower alone; see `unlearning.families.clip_config`.

    tokenizer: of the text tower; None where there is no text tower.
    """

    model_cfg: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    architecture: str | None = None
    tokenizer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Reads:
    """Which activations of the vision tower the language model is shown.

    layer: of a ViT the hidden state as transformers counts them (0 enters the first block, i leaves
        block i, -2 enters the last block); of a ModifiedResNet "layer1" to "layer4".
    class_token: whether the class token of a ViT is shown too (transformers: "full" instead of "default").
    """

    layer: int | str
    class_token: bool = False


@dataclass(frozen=True)
class ProjectorCfg:
    """Two linear layers from the tower's width to the decoder's, as in LLaVA-1.5."""

    act: Literal["gelu"] = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class DecoderCfg:
    """What decides a Llama's shape and function; the names are those of its `config.json`."""

    model_type: Literal["llama"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    bos_token_id: int
    eos_token_id: int
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"


@dataclass(frozen=True)
class ChatCfg:
    """How a question is put.

    prompt: text with the image token once and {} once, where the question goes; the answer follows.
    image_token: stands for the image, and is a token of the tokenizer.
    question: what is asked for the name of what an image shows.
    article: whether the answer to that is "a bird" and not "bird".
    """

    prompt: str
    image_token: str
    question: str = "what is this?"
    article: bool = True


@dataclass(frozen=True)
class VlmConfig:
    """The whole configuration."""

    schema: Literal[1]
    family: Literal["vlm"]
    clip: ClipPart
    reads: Reads
    projector: ProjectorCfg
    decoder: DecoderCfg
    chat: ChatCfg


def parse(config: Mapping[str, Any]) -> VlmConfig:
    """The configuration as values.

    Raises:
        ModelError: the family or schema is another one, or a field is missing, unknown or of a value that
            is not supported.
    """
    if config.get("schema") != 1:
        raise ModelError("config.json does not follow schema 1")
    if config.get("family") != FAMILY:
        raise ModelError(f"the model is of family {config.get('family')!r}, expected {FAMILY!r}")
    try:
        parsed = from_plain(VlmConfig, config)
    except InputError as error:
        raise ModelError(f"config.json: {error}") from None
    prompt, token = parsed.chat.prompt, parsed.chat.image_token
    if not token or prompt.count(token) != 1 or prompt.count("{}") != 1:
        raise ModelError("chat: the prompt must hold the image token once and {} once")
    if ("text_cfg" in parsed.clip.model_cfg) != (parsed.clip.tokenizer is not None):
        raise ModelError("clip: a text tower and its tokenizer are given together, or neither")
    return parsed
