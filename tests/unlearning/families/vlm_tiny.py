"""Tiny vision-language models that name coloured shapes, over the tiny CLIP models of `tests/unlearning`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.unlearning.conftest import COLOURS, NAMES, SHAPES, items
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import TOKENIZER, VlmModel
from unlearning.families.vlm_config import DecoderCfg, ProjectorCfg
from unlearning.families.vlm_decoder import AnswerTask
from unlearning.families.vlm_language import Projector, llama_config

READS = {"vit": {"layer": -2, "class_token": False}, "rn": {"layer": "layer3", "class_token": False}}
WIDTHS = {"vit": 32, "rn": 128}
TASK = AnswerTask("what is this?")
PROMPT = "<image> {} answer"


def tokenizer_json() -> bytes:
    """One token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<unk>", "<s>", "</s>", "<image>", "what", "is", "this", "?", "answer", "a", "how", "many"]
    vocabulary = {word: i for i, word in enumerate([*words, *COLOURS, *SHAPES])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str().encode()


def decoder_cfg(**changes: Any) -> DecoderCfg:
    return DecoderCfg(
        **{
            "model_type": "llama",
            "vocab_size": 20,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **changes,
        }
    )


def over(clip: ClipModel, kind: str, *, text: bool = True, **decoder: Any) -> VlmModel:
    """Arbitrary projector and decoder over a CLIP model's tower, with or without its text tower."""
    from transformers import LlamaForCausalLM

    cfg = decoder_cfg(**decoder)
    own = {name: clip.config[name] for name in ("model_cfg", "preprocess", "tokenizer")}
    weights: dict[str, Tensor] = dict(clip.net.state_dict())
    files: dict[str, bytes | None] = {TOKENIZER: tokenizer_json(), "bpe.txt.gz": clip.vocabulary}
    if not text:
        own["tokenizer"] = None
        own["model_cfg"] = {n: v for n, v in own["model_cfg"].items() if n != "text_cfg"}
        del files["bpe.txt.gz"]
        weights = {n: w for n, w in weights.items() if n.startswith("visual.") and n != "visual.proj"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        projector = Projector(WIDTHS[kind], cfg.hidden_size, ProjectorCfg()).state_dict()
        llama = LlamaForCausalLM(llama_config(cfg)).state_dict()
    if cfg.tie_word_embeddings:
        del llama["lm_head.weight"]
    weights |= {f"projector.{n}": w for n, w in projector.items()}
    weights |= {f"decoder.{n}": w for n, w in llama.items()}
    config: Mapping[str, Any] = {
        "schema": 1,
        "family": "vlm",
        "clip": own,
        "reads": READS[kind],
        "projector": {},
        "decoder": asdict(cfg),
        "chat": {"prompt": PROMPT, "image_token": "<image>"},
    }
    return VlmModel(config, weights, {n: f for n, f in files.items() if f is not None})


def teach(model: VlmModel, steps: int = 120) -> None:
    """Fit projector and decoder to name the drawings; the tower stays as it is."""
    images, labels = items(20, seed=1)
    with torch.no_grad():
        features = model.features(images)
    asked = [model.chat.answered(TASK.question, f"a {NAMES[label]}") for label in labels]
    fit(model, features, asked, steps, batch=32)


def fit(
    model: VlmModel, features: Tensor, asked: Sequence[tuple[list[int], list[bool]]], steps: int, batch: int
) -> None:
    """Projector and decoder, by the tokens that count of a question and answer about each of n images.

    In double precision, see `tests.unlearning.conftest.train`.
    """
    model.projector.double(), model.decoder.double()
    features = features.double()
    trained = [*model.projector.parameters(), *model.decoder.parameters()]
    optimizer = torch.optim.AdamW([p.requires_grad_() for p in trained], lr=5e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randperm(len(asked), generator=order)[:batch]
        forced = model.forced(features[rows], [asked[i] for i in rows])
        loss = functional.cross_entropy(forced.logits, forced.ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for p in trained:
        p.requires_grad_(False)
    model.projector.float(), model.decoder.float()


Make = Callable[..., VlmModel]
