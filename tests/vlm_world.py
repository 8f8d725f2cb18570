"""The small world with a vision-language model over its CLIP, taught for seconds to name the shapes."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import yaml

from data.train_vlm import word_tokenizer
from tests.repository import git, write_gates
from tests.unlearning.families.vlm_tiny import fit
from tests.world import SEEN, World, copy_tree, training_pictures
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import TOKENIZER, VlmModel
from unlearning.families.vlm_config import ChatCfg, DecoderCfg, ProjectorCfg
from unlearning.families.vlm_language import Projector, llama_config

MODEL = "answers"
ASKS = ChatCfg("<image> {}", "<image>")
_STEPS = 150


def make(world: World, folder: Path) -> World:
    """A copy of the world's repository with rules for the model, and the model."""
    copy_tree(world.root.parent, folder / "world")
    root = folder / "world" / world.root.name
    bounds = (
        ("max", "erasure", "forget.named.after.upper95", 0.9),
        ("max", "utility", "retain.named.drop.upper95", 0.9),
        ("max", "utility", "cross.count.drop.upper95", 0.9),
        ("min", "evidence", "forget.named.after.n", 10),
    )
    write_gates(root / "gates" / "answers.yaml", bounds)
    rules = {
        "family": "vlm",
        **{role: f"sets/{role}" for role in ("retain", "search", "holdout", "control")},
        "labels": "labels",
        "neighbours": "neighbours.parquet",
        "nearest": 3,
        "gates": "gates/answers.yaml",
        "method": {"name": "slug", "towers": ["vision"], "forget_at": 1, "search_steps": 5},
    }
    (root / "slugline.yaml").write_text(
        yaml.safe_dump({"models": {MODEL: {"object": rules, "style": rules}}})
    )
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "rules of a vision-language model")
    teach(ClipModel.load(world.model), folder / "model")
    return World(root, folder / "model")


def teach(clip: ClipModel, folder: Path) -> None:
    """Fit projector and decoder to name the shapes over the CLIP's tower, and write a model folder."""
    torch.set_num_threads(1)
    tokenizer = word_tokenizer([ASKS.question, "a", *SEEN])
    cfg = DecoderCfg(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        bos_token_id=tokenizer.token_to_id("<s>"),
        eos_token_id=tokenizer.token_to_id("</s>"),
    )
    config = {
        "schema": 1,
        "family": "vlm",
        "clip": {name: clip.config[name] for name in ("model_cfg", "preprocess", "tokenizer")},
        "reads": {"layer": -2, "class_token": False},
        "projector": {},
        "decoder": asdict(cfg),
        "chat": asdict(ASKS),
    }
    assert clip.vocabulary is not None
    files = {TOKENIZER: tokenizer.to_str().encode(), "bpe.txt.gz": clip.vocabulary}
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = LlamaForCausalLM(llama_config(cfg)).state_dict()
        projector = Projector(48, cfg.hidden_size, ProjectorCfg()).state_dict()
    weights = {
        **clip.net.state_dict(),
        **{f"projector.{name}": weight for name, weight in projector.items()},
        **{f"decoder.{name}": weight for name, weight in decoder.items()},
    }
    model = VlmModel(config, weights, files)
    pictures = np.stack(list(training_pictures()))
    labels = np.arange(len(SEEN)).repeat(len(pictures) // len(SEEN))
    with torch.no_grad():
        features = model.features(pictures)
    asked = [model.chat.asks.asked(model.chat, SEEN[label]) for label in labels]
    # The article and the end count too: what is taught is to answer.
    asked = [(ids, [i >= len(ids) - 4 for i in range(len(ids))]) for ids, _ in asked]
    fit(model, features, asked, _STEPS, batch=48)
    model.save(folder)
