"""Stage `train`: the reference CLIP, from scratch, on the drawings of pool and retain and by more hands.

Run as `python -m data.train`.  A checkpoint under `.slugline/train/` makes it resumable: every
batch is drawn from generators seeded by (seed, step), so a resumed run takes the same steps.

Other seeds, and models that never saw what is to be forgotten, are trained beside it:

    python -m data.train --seed 8 --out .slugline/models/seed-8
    python -m data.train --without ids.txt --out .slugline/models/retrained

What is published is a running average of the weights (decay `average`), which does better on hands
that training never saw than the last step does.  The curve is measured on the search hand; the
holdout hands are looked at once, at the end.
"""

import argparse
import gzip
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.canonical import digest
from data.augment import augment, plain
from data.batches import Batches
from data.checkpoint import resume, save
from data.precision import half_where_native
from unlearning.families.clip import ClipModel

OUT = Path("data/models")
CHECKPOINTS = Path(".slugline/train")
EVERY = 250
BETAS = (0.9, 0.98)
MAX_SCALE = math.log(100)


def main() -> None:
    """Train, resuming from the checkpoint of the same parameters; write model, metrics and curve."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="instead of params.yaml's")
    parser.add_argument("--without", type=Path, help="file of concept ids, one a line, to leave out")
    parser.add_argument("--out", type=Path, default=OUT, help="gets reference/, metrics.json and curve.csv")
    told = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    if told.seed is not None:
        params["train"]["seed"] = told.seed
    without = frozenset(told.without.read_text().split() if told.without else ())
    drawings = pd.read_parquet("data/corpus/drawings.parquet")
    unknown = without - set(drawings["object"])
    if unknown:
        parser.error(f"nothing was drawn of {sorted(unknown)[0]}")
    train(drawings[~drawings["object"].isin(without)], params, told.out)


def train(drawings: pd.DataFrame, params: dict[str, Any], out: Path) -> None:
    """Train on those of the drawings that may be trained on, and publish; see `main`."""
    from tqdm import tqdm

    options, templates = params["train"], params["split"]["templates"]
    torch.set_num_threads(int(os.environ.get("SLUGLINE_THREADS", "2")))
    torch.manual_seed(options["seed"])
    trained = _trained(drawings, [*options["redrawn_styles"], *options["icon_styles"]])
    batches = Batches(trained, templates, options)
    model, published = _new_model(options), _new_model(options)
    net = model.net.requires_grad_(True).to(memory_format=torch.channels_last)
    averaged = published.net.state_dict()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": options["weight_decay"]},
            {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=BETAS,
        fused=True,
    )
    checkpoint = CHECKPOINTS / f"{digest([options, params['split'], sorted(trained['sha256'])])[:16]}.pt"
    step, curve = resume(checkpoint, net, averaged, optimizer)
    losses = []
    with tqdm(total=options["steps"], initial=step, desc="train", unit="step") as bar:
        while step < options["steps"]:
            losses.append(_train_step(model, optimizer, batches, step, options))
            _average(averaged, net, min(options["average"], (step + 1) / (step + 20)))
            step += 1
            bar.update()
            if step % EVERY == 0 or step == options["steps"]:
                top1, top5 = accuracy(
                    published, _held(drawings, params["split"]["search_styles"]), templates["object"]
                )
                curve.append({"step": step, "loss": sum(losses) / len(losses), "top1": top1, "top5": top5})
                bar.set_postfix(loss=f"{curve[-1]['loss']:.3f}", search_top1=f"{top1:.3f}")
                losses = []
                save(checkpoint, net, averaged, optimizer, step, curve)
    _publish(published, drawings, params, curve, out)


def _trained(drawings: pd.DataFrame, more_styles: list[str]) -> pd.DataFrame:
    """The drawings of pool and retain, then of the same objects in more hands: nothing else is trained on."""
    shown = [
        pd.read_parquet(f"data/sets/{name}/items.parquet", columns=["sha256"]) for name in ("pool", "retain")
    ]
    own = drawings[drawings["sha256"].isin(pd.concat(shown)["sha256"])]
    known = drawings[drawings["object"].isin(own["object"])]
    return pd.concat([own, *(known[known["style_name"] == s] for s in more_styles)], ignore_index=True)


def _held(drawings: pd.DataFrame, styles: list[str]) -> pd.DataFrame:
    labels = pd.read_parquet("data/labels/labels.parquet")
    seen = labels[labels["seen"] & (labels["axis"] == "object")]
    return drawings[drawings["style_name"].isin(styles) & drawings["object"].isin(seen["id"])]


def _new_model(options: dict[str, Any]) -> ClipModel:
    """An untrained model with a tokenizer of the first merges of CLIP's own vocabulary."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as stream:
        merges = stream.read().split("\n")[: options["vocabulary_merges"] + 1]  # the first line is a header
    # 256 bytes, the same 256 ending a word, the merges, start and end of text.
    vocab_size = 2 * 256 + options["vocabulary_merges"] + 2
    text_cfg = {**options["model"]["text_cfg"], "vocab_size": vocab_size}
    model_cfg = {**options["model"], "text_cfg": text_cfg}
    config = {
        "schema": 1,
        "family": "clip",
        "architecture": None,
        "model_cfg": model_cfg,
        "preprocess": {
            "size": model_cfg["vision_cfg"]["image_size"],
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
        },
        "tokenizer": {"kind": "simple", "context_length": text_cfg["context_length"], "vocab": "bpe.txt.gz"},
    }
    vocabulary = gzip.compress("\n".join(merges).encode(), mtime=0)
    return ClipModel(config, CLIP(**model_cfg).state_dict(), vocabulary)


def _train_step(
    model: ClipModel, optimizer: torch.optim.Optimizer, batches: Batches, step: int, options: dict[str, Any]
) -> float:
    """One step of the symmetric contrastive loss, plus which hand drew what; returns the loss."""
    generator = torch.Generator().manual_seed(options["seed"] * 1_000_003 + step)
    for group in optimizer.param_groups:
        group["lr"] = _learning_rate(step, options)
    net = model.net.train()
    batch = batches.draw(step)
    n, n_asked = len(batch.drawings), len(batch.hand)
    size = options["model"]["vision_cfg"]["image_size"]
    mean, std = (torch.tensor(model.config["preprocess"][k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    pixels = (augment(batch.drawings, size, generator, torch.arange(n) >= n_asked) - mean) / std
    with half_where_native():
        seen = net.encode_image(pixels.contiguous(memory_format=torch.channels_last))
    seen = net.logit_scale.exp() * F.normalize(seen.float(), dim=-1)
    read = F.normalize(net.encode_text(model.tokenize([*batch.captions, *batch.hands])), dim=-1)
    logits, own = seen @ read[:n].T, torch.arange(n)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    loss = loss + float(options["hand_weight"]) * F.cross_entropy(seen[:n_asked] @ read[n:].T, batch.hand)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        net.logit_scale.clamp_(0, MAX_SCALE)
    return loss.item()


@torch.no_grad()
def _average(averaged: dict[str, Tensor], net: nn.Module, decay: float) -> None:
    """averaged = decay * averaged + (1 - decay) * net, in place; counters are copied."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            averaged[name].lerp_(value, 1 - decay)
        else:
            averaged[name].copy_(value)


def _learning_rate(step: int, options: dict[str, Any]) -> float:
    """Linear warm-up, then cosine to 5 % of the peak."""
    decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / options["steps"]))
    return float(options["learning_rate"] * min(1.0, (step + 1) / options["warmup"]) * decay)


def accuracy(model: ClipModel, held: pd.DataFrame, templates: list[str]) -> tuple[float, float]:
    """Zero-shot top-1 and top-5 of drawings against the names of the whole vocabulary."""
    labels = pd.read_parquet("data/labels/labels.parquet")
    labels = labels[labels["seen"] & (labels["axis"] == "object")].reset_index(drop=True)
    model.net.eval()
    texts = torch.stack([model.encode_texts([t.format(n) for n in labels["name"]]) for t in templates]).sum(0)
    seen = model.encode_images(plain(Batches.pixels(held)))
    place = dict(zip(labels["id"], labels.index, strict=True))
    wanted = torch.tensor([place[i] for i in held["object"]])[:, None]
    hits = (seen @ F.normalize(texts, dim=-1).T).topk(5).indices == wanted
    return hits[:, 0].float().mean().item(), hits.any(1).float().mean().item()


def _publish(
    model: ClipModel, drawings: pd.DataFrame, params: dict[str, Any], curve: list[dict[str, float]], out: Path
) -> None:
    """Write the model in half precision, then measure what was written."""
    shutil.rmtree(out / "reference", ignore_errors=True)
    model.save(out / "reference", torch.float16)
    model = ClipModel.load(out / "reference")
    templates = params["split"]["templates"]["object"]
    metrics: dict[str, Any] = {"parameters": sum(p.numel() for p in model.net.parameters())}
    for role in ("search", "holdout"):
        for style in params["split"][f"{role}_styles"]:
            held = _held(drawings, [style])
            top1, top5 = accuracy(model, held, templates)
            metrics[f"{role}_{style}"] = {"n": len(held), "top1": round(top1, 4), "top5": round(top5, 4)}
    held = _held(drawings, params["split"]["holdout_styles"])
    top1, top5 = accuracy(model, held, templates)
    metrics["holdout"] = {
        "n": len(held),
        "concepts": held["object"].nunique(),
        "top1": round(top1, 4),
        "top5": round(top5, 4),
    }
    pd.DataFrame(curve).to_csv(out / "curve.csv", index=False)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["holdout"]))


if __name__ == "__main__":
    main()
