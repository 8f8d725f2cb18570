"""CLIP models of pretrained parts: an EfficientNet of timm and a BERT of transformers, joined by projections.

open_clip builds such a model (`CustomTextCLIP`) from names, and would fetch what a name stands for.
Here a name can only choose an architecture that timm has code for, and BERT's configuration stands in
`config.json` itself; weights come from the model folder alone:

    "model_cfg": {
      "embed_dim": 384,
      "vision_cfg": {"timm_model_name": "tf_efficientnet_lite0", "image_size": 96, "timm_pool": "avg",
                     "timm_proj": "linear"},
      "text_cfg": {"hf_config": {"model_type": "bert", "hidden_size": 384, ...},
                   "hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}},
    "tokenizer": {"kind": "wordpiece", "context_length": 32, "vocab": "tokenizer.json"}

The classes below are all that such a `model_cfg` may say: any other field, and any other value of a
fixed one, is refused.

Shapes: N texts, L tokens of the longest one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import InputError, ModelError


@dataclass(frozen=True)
class VisionCfg:
    """An EfficientNet, its pooled features and a linear projection."""

    timm_model_name: str
    image_size: int
    timm_pool: Literal["avg"]
    timm_proj: Literal["linear"]
    timm_proj_bias: bool = False


@dataclass(frozen=True)
class BertCfg:
    """What decides a BERT's shape and function in evaluation; the names are those of its `config.json`."""

    model_type: Literal["bert"]
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: Literal["gelu"]
    pad_token_id: int


@dataclass(frozen=True)
class TextCfg:
    """A BERT, the mean over its tokens and a linear projection."""

    hf_config: BertCfg
    hf_pooler_type: Literal["mean_pooler"]
    hf_proj_type: Literal["linear"]


@dataclass(frozen=True)
class ModelCfg:
    """The whole `model_cfg`."""

    embed_dim: int
    vision_cfg: VisionCfg
    text_cfg: TextCfg


def describes(model_cfg: Mapping[str, Any]) -> bool:
    """Whether `model_cfg` is of this kind: its text tower is given by a BERT configuration."""
    text_cfg = model_cfg.get("text_cfg")
    return isinstance(text_cfg, Mapping) and "hf_config" in text_cfg


def is_built(net: Any) -> bool:
    """Whether `net` is a network of this kind."""
    from open_clip.model import CustomTextCLIP

    return isinstance(net, CustomTextCLIP)


def build_network(model_cfg: Mapping[str, Any]) -> Any:
    """An open_clip `CustomTextCLIP` with arbitrary weights; nothing is fetched, whatever the names say.

    Raises:
        ModelError: a field is missing, unknown or has a value that is not supported.
    """
    import timm
    from open_clip.model import CustomTextCLIP
    from transformers import BertConfig

    try:
        cfg = from_plain(ModelCfg, model_cfg)
    except InputError as error:
        raise ModelError(f"model_cfg of pretrained towers: {error}") from None
    if cfg.vision_cfg.timm_model_name not in timm.list_models(module="efficientnet"):
        # timm takes "hf-hub:" and "local-dir:" in front of a name for a place to load from.
        raise ModelError(
            f"vision_cfg: timm_model_name {cfg.vision_cfg.timm_model_name!r} is no EfficientNet of timm"
        )
    text_cfg = asdict(cfg.text_cfg)
    bert = BertConfig(**text_cfg.pop("hf_config"))
    try:
        # open_clip has no way in for a configuration, only for a hub name or a folder: this folder holds
        # nothing else.  The initial weights are thrown away; drawing them must not move the caller's
        # generator.
        with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
            bert.save_pretrained(folder)
            text_cfg |= {"hf_model_name": folder, "hf_model_pretrained": False}
            return CustomTextCLIP(cfg.embed_dim, asdict(cfg.vision_cfg), text_cfg)
    except (TypeError, ValueError, RuntimeError, AssertionError, ZeroDivisionError):
        raise ModelError("model_cfg does not describe towers that can be built") from None


class WordPiece:
    """BERT's tokenizer: texts to ids (N, L), in lower case, between a start and an end token.

    Args:
        vocabulary: content of `tokenizer.json`.
        context_length: longer texts are cut, the end token stays.
        bert: configuration of the tower that reads the ids.

    Raises:
        ModelError: the file is no WordPiece tokenizer, has more tokens or longer texts than the tower,
            or gives an empty text no token.
    """

    def __init__(self, vocabulary: bytes, context_length: int, bert: Any) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_buffer(vocabulary)
        except ValueError:
            raise ModelError("tokenizer.json is not a tokenizer") from None
        if type(self._tokenizer.model).__name__ != "WordPiece":
            raise ModelError("tokenizer.json holds no WordPiece model")
        size = self._tokenizer.get_vocab_size()
        if size > bert.vocab_size:
            raise ModelError(f"the tokenizer has {size} tokens, the model embeds {bert.vocab_size}")
        # "[PAD]" in a text is text: a padding id inside would be left out of the mean over tokens.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        around = self._tokenizer.encode("").ids
        if not around or bert.pad_token_id in around:
            raise ModelError("tokenizer.json puts no start or end token around a text")
        if not len(around) < context_length <= bert.max_position_embeddings:
            raise ModelError(
                f"context_length {context_length} is not in "
                f"{len(around) + 1}..{bert.max_position_embeddings}, what the model can read"
            )
        self._tokenizer.enable_truncation(context_length)
        self._tokenizer.enable_padding(pad_id=bert.pad_token_id)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, L), L the longest of these texts: a bidirectional tower pays for every padding token."""
        return torch.tensor([encoded.ids for encoded in self._tokenizer.encode_batch(list(texts))])
