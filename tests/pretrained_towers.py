"""Tiny models of an EfficientNet (timm) and a BERT (transformers), with a tokenizer of a few words."""

import json
from collections.abc import Iterable
from typing import Any

import torch

from unlearning.families import clip_config
from unlearning.families.clip import ClipModel

SIZE = 32
CONTEXT = 10
VOCABULARY = 40
START, END = 2, 3


def config() -> dict[str, Any]:
    """Content of `config.json`."""
    return {
        "schema": 1,
        "family": "clip",
        "architecture": None,
        "model_cfg": {
            "embed_dim": 24,
            "vision_cfg": {
                "timm_model_name": "test_efficientnet",
                "image_size": SIZE,
                "timm_pool": "avg",
                "timm_proj": "linear",
                "timm_proj_bias": True,
            },
            "text_cfg": {
                "hf_config": {
                    "model_type": "bert",
                    "vocab_size": VOCABULARY,
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 48,
                    "max_position_embeddings": 16,
                    "type_vocab_size": 2,
                    "layer_norm_eps": 1e-12,
                    "hidden_act": "gelu",
                    "pad_token_id": 0,
                },
                "hf_pooler_type": "mean_pooler",
                "hf_proj_type": "linear",
            },
        },
        "preprocess": {"size": SIZE, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "tokenizer": {"kind": "wordpiece", "context_length": CONTEXT, "vocab": "tokenizer.json"},
    }


def tokenizer_json(texts: Iterable[str]) -> bytes:
    """A WordPiece tokenizer of the words of texts; it cuts and pads at another length than the model does."""
    words = sorted({word for text in texts for word in text.replace(".", " .").split()} | {"pad", "[", "]"})
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    tokenizer = {
        "version": "1.0",
        "truncation": {"max_length": 64, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, token in enumerate(special)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", END], "cls": ["[CLS]", START]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate((*special, *words))},
        },
    }
    return json.dumps(tokenizer).encode()


def random_model(texts: Iterable[str]) -> ClipModel:
    """With weights drawn by a fixed seed, as large as keeps activations of their size."""
    net = clip_config.build_network(config()["model_cfg"])
    draw = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=draw)
            parameter.data.copy_(drawn * parameter[0].numel() ** -0.5)
    return ClipModel(config(), net.state_dict(), tokenizer_json(texts))
