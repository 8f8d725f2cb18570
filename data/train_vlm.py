"""Stage `train-vlm`: the reference vision-language model, on the drawings of the reference CLIP's training.

Run as `python -m data.train_vlm`.  The vision tower is the reference CLIP's and stays as it is, as in the
first stage of LLaVA's training: a linear probe of its `layer3` knows never-seen hands better than the
CLIP's own zero-shot head does, and the CLIP stays the matching one.  Projector and decoder are trained
from scratch.  A checkpoint under `.slugline/train/` makes it resumable: every batch is drawn from
generators seeded by (seed, step), so a resumed run takes the same steps.

What is published is a running average of the weights.  The curve is measured on the search hand; the
holdout hands are looked at once, at the end.
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.canonical import digest, file_sha256
from data.augment import augment, plain
from data.batches import Batches
from data.checkpoint import resume, save
from data.questions import NAME, UTILITY, Asked, Questions, utility_set

# Private there, and not moved: `data/train.py` is a dependency of a finished stage.
from data.train import CHECKPOINTS, _average, _held, _learning_rate, _trained
from unlearning.families.clip import ClipModel
from unlearning.families.config import WEIGHTS
from unlearning.families.vlm import TOKENIZER, VlmModel
from unlearning.families.vlm_config import FAMILY, DecoderCfg, ProjectorCfg
from unlearning.families.vlm_language import Projector, llama_config
from unlearning.naming import Names

OUT = Path("data/models")
EVERY = 500
BETAS = (0.9, 0.98)
START, END, IMAGE, UNKNOWN = "<s>", "</s>", "<image>", "<unk>"
PROMPT = f"{IMAGE} {{}}"


def main() -> None:
    """Train, resuming from the checkpoint of the same parameters; write model, metrics and curve."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="instead of params.yaml's")
    parser.add_argument("--out", type=Path, default=OUT, help="gets vlm/, vlm-metrics.json and vlm-curve.csv")
    parser.add_argument("--stop", type=int, help="go no further than this step, and publish nothing")
    told = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    if told.seed is not None:
        params["vlm"]["seed"] = told.seed
    train(pd.read_parquet("data/corpus/drawings.parquet"), params, told.out, told.stop)


def train(drawings: pd.DataFrame, params: dict[str, Any], out: Path, stop: int | None = None) -> None:
    """Train on those of the drawings that the reference CLIP was trained on, and publish; see `main`."""
    from tqdm import tqdm

    torch.set_num_threads(int(os.environ.get("SLUGLINE_THREADS", "2")))
    clip, clip_folder = ClipModel.load(OUT / "reference"), OUT / "reference"
    options = {**params["vlm"], "image_size": clip.image_size}
    shown = _trained(drawings, [*params["train"]["redrawn_styles"], *params["train"]["icon_styles"]])
    pixels = Batches.pixels(shown)
    questions = Questions(shown, pixels.numpy(), options)
    model, published = (initial(clip, questions, pixels, options) for _ in range(2))
    net, averaged = parts(model).requires_grad_(True), parts(published).state_dict()
    decays = [p for p in net.parameters() if p.ndim >= 2], [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decays[0], "weight_decay": options["weight_decay"]},
            {"params": decays[1], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )
    key = digest([options, file_sha256(clip_folder / WEIGHTS), sorted(shown["sha256"])])
    checkpoint = CHECKPOINTS / f"vlm-{key[:16]}.pt"
    step, curve = resume(checkpoint, net, averaged, optimizer)
    last, losses = min(options["steps"], stop or options["steps"]), []
    search = _held(drawings, params["split"]["search_styles"])
    with tqdm(total=last, initial=step, desc="train-vlm", unit="step") as bar:
        while step < last:
            losses.append(train_step(model, optimizer, questions.draw(step), pixels, step, options))
            _average(averaged, net, min(options["average"], (step + 1) / (step + 20)))
            step += 1
            bar.update()
            if step % EVERY == 0 or step == last:
                curve.append(
                    {"step": step, "loss": sum(losses) / len(losses), "named": named(published, search)}
                )
                bar.set_postfix(loss=f"{curve[-1]['loss']:.3f}", search_named=f"{curve[-1]['named']:.3f}")
                losses = []
                save(checkpoint, net, averaged, optimizer, step, curve)
    if step == options["steps"]:
        _publish(published, drawings, params, curve, out)


def parts(model: VlmModel) -> nn.ModuleDict:
    """What is trained."""
    return nn.ModuleDict({"projector": model.projector, "decoder": model.decoder})


def initial(clip: ClipModel, questions: Questions, pixels: Tensor, options: Mapping[str, Any]) -> VlmModel:
    """An untrained model that reads the tower of a CLIP model; the caller's random generator does not move.

    Args:
        clip: the CLIP model.
        questions: whose words are the vocabulary.
        pixels: uint8 RGBA drawings (N, H, W, 4); the features of the first ones decide a scale.
        options: `vlm` of params.yaml.
    """
    from transformers import LlamaForCausalLM

    tokenizer = word_tokenizer(questions.texts())
    sizes = dict(options["decoder"])
    cfg = DecoderCfg(
        model_type="llama",
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=tokenizer.token_to_id(START),
        eos_token_id=tokenizer.token_to_id(END),
        num_key_value_heads=sizes["num_attention_heads"],
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        **sizes,
    )
    own = ("model_cfg", "preprocess", "tokenizer", "architecture")
    config = {
        "schema": 1,
        "family": FAMILY,
        "clip": {name: clip.config[name] for name in own},
        "reads": dict(options["reads"]),
        "projector": {},
        "decoder": {name: getattr(cfg, name) for name in cfg.__dataclass_fields__},
        "chat": {"prompt": PROMPT, "image_token": IMAGE},
    }
    files = {TOKENIZER: tokenizer.to_str().encode(), "bpe.txt.gz": clip.vocabulary}
    files = {name: content for name, content in files.items() if content is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options["seed"])
        decoder = LlamaForCausalLM(llama_config(cfg)).state_dict()
        width = clip_width(clip, options["reads"]["layer"])
        projector = Projector(width, cfg.hidden_size, ProjectorCfg()).state_dict()
    weights = {
        **clip.net.state_dict(),
        **{f"projector.{name}": w for name, w in projector.items()},
        **{f"decoder.{name}": w for name, w in decoder.items()},
    }
    model = VlmModel(config, weights, files)
    standardise(model, plain(pixels[:512]))
    return model


def clip_width(clip: ClipModel, layer: str) -> int:
    """Channels of a group of the CLIP model's ModifiedResNet."""
    width: int = getattr(clip.net.visual, layer)[-1].bn3.num_features
    return width


@torch.no_grad()
def standardise(model: VlmModel, images: Tensor) -> None:
    """Fold "minus mean, over deviation" of the features into the projector's first layer.

    Features of a ResNet are not normalised: channels differ a hundredfold.
    """
    features = model.features(images).flatten(0, 1)
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    first = model.projector.linear_1
    first.weight.div_(deviation)
    first.bias.sub_(first.weight @ mean)


def word_tokenizer(texts: list[str]) -> Any:
    """A tokenizer with one token for each word of the texts, in lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    special = [UNKNOWN, START, END, IMAGE]
    split, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    found = {word for text in texts for word, _ in split.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: i for i, word in enumerate([*special, *sorted(found)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, split
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, vocabulary[START])]
    )
    return tokenizer


def train_step(
    model: VlmModel,
    optimizer: torch.optim.Optimizer,
    asked: Asked,
    pixels: Tensor,
    step: int,
    options: Mapping[str, Any],
) -> float:
    """One step of the language model's loss on the answers; returns the loss."""
    generator = torch.Generator().manual_seed(options["seed"] * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(step, dict(options))
    n = len(asked.rows) - len(asked.scenes)
    drawn = pixels[torch.from_numpy(asked.rows[:n])]
    views = augment(drawn, options["image_size"], generator, torch.ones(n, dtype=torch.bool))
    views = (views * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    with torch.no_grad():
        features = model.features(
            torch.cat([views, torch.from_numpy(asked.scenes)]), micro_batch=len(asked.rows)
        )
    # Channels left out of all tokens of a row: what a name rests on must not be a few channels that only
    # trained hands agree on.
    keep = torch.rand(len(features), 1, features.shape[-1], generator=generator) >= options["dropout"]
    loss = answer_loss(model, features * keep / (1 - options["dropout"]), asked.questions, asked.answers)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()
    return loss.item()


def answer_loss(model: VlmModel, features: Tensor, questions: list[str], answers: list[str]) -> Tensor:
    """Mean negative log-likelihood of the tokens of the answers, end token included."""
    asked = [model.chat.answered(q, a) for q, a in zip(questions, answers, strict=True)]
    forced = model.forced(features, asked)
    return F.cross_entropy(forced.logits, forced.ids)


def named(model: VlmModel, held: pd.DataFrame) -> float:
    """Share of drawings, as drawn, whose "what is this?" is answered with their name."""
    return names_rate(model, held["name"].tolist(), plain(Batches.pixels(held)))


def names_rate(model: VlmModel, names: list[str], images: Tensor) -> float:
    """Share of images whose answer contains the name, of all names of the vocabulary."""
    labels = pd.read_parquet("data/labels/labels.parquet")
    known = labels.loc[labels["seen"] & (labels["axis"] == "object"), "name"].tolist()
    answers = model.answers(images, [NAME[0]] * len(images), micro_batch=256)
    return Names(known).rate(answers, [known.index(name) for name in names])


def _publish(
    model: VlmModel, drawings: pd.DataFrame, params: dict[str, Any], curve: list[dict[str, float]], out: Path
) -> None:
    """Write the model in half precision, then measure what was written."""
    shutil.rmtree(out / "vlm", ignore_errors=True)
    model.save(out / "vlm", torch.float16)
    model = VlmModel.load(out / "vlm")
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters.values())}
    for role in ("search", "holdout"):
        styles = params["split"][f"{role}_styles"]
        for name, own in [*((f"{role}_{style}", [style]) for style in styles), (role, styles)]:
            found[name] = measured(model, _held(drawings, own))
    pd.DataFrame(curve).to_csv(out / "vlm-curve.csv", index=False)
    (out / "vlm-metrics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["holdout"]))


def measured(model: VlmModel, held: pd.DataFrame) -> dict[str, Any]:
    """Share of right names, and of right answers to the questions of the utility set."""
    pixels = Batches.pixels(held)
    found: dict[str, Any] = {
        "n": len(held),
        "concepts": held["object"].nunique(),
        "named": round(names_rate(model, held["name"].tolist(), plain(pixels)), 4),
    }
    asked = utility_set(held.assign(source=held["sha256"].str[:16]), list(pixels.numpy()), model.image_size)
    answers = np.array(model.answers(asked.pictures, asked.table["question"].tolist(), micro_batch=256))
    right = pd.Series(answers == asked.table["answer"])
    for kind in UTILITY:
        own = right[asked.table["kind"] == kind]
        found[kind] = {"n": len(own), "right": round(float(own.mean()), 4)}
    return found


if __name__ == "__main__":
    main()
