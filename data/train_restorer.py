"""Stage `train-restorer`: a small all-in-one restorer, from scratch, on the train photos.

Run as `python -m data.train_restorer`.  A checkpoint under `.slugline/train/` makes it resumable: every
batch is drawn from generators seeded by (seed, step), so a resumed run takes the same steps.

Half of the crops are pairs of the sets pool and retain, so that what may be forgotten was learned; the
others are cut out of the same photos and degraded anew.  Other seeds, and models that never saw a
task, are trained beside it:

    python -m data.train_restorer --seed 8 --out .slugline/models/restorer-8
    python -m data.train_restorer --without haze --out .slugline/models/restorer-without-haze

The curve is measured on the search photo; the holdout photos are looked at once, at the end.
"""

import argparse
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracts.canonical import digest
from data.checkpoint import resume, save
from data.degradations import TASKS, Field, Pixels, degrade
from data.photos import of_role
from data.restoration_sets import CLEAN, SETS, load_pairs, quality

OUT = Path("data/models-restoration")
CHECKPOINTS = Path(".slugline/train")
EVERY = 100

Curve = list[dict[str, float]]


def main() -> None:
    """Train, resuming from the checkpoint of the same parameters; write model, metrics and curve."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="instead of params.yaml's")
    parser.add_argument("--without", choices=TASKS, help="a task never to train on")
    parser.add_argument("--out", type=Path, default=OUT, help="gets restorer/, metrics.json and curve.csv")
    told = parser.parse_args()
    options = yaml.safe_load(Path("params.yaml").read_text())["train_restorer"]
    if told.seed is not None:
        options["seed"] = told.seed
    train(options, told.without, SETS, told.out)


def train(options: dict[str, Any], without: str | None, sets: Path, out: Path) -> None:
    """Train on the train photos and the pairs of pool and retain, and publish; see `main`.

    Args:
        options: `train_restorer` of params.yaml.
        without: a task that is left out of every batch.
        sets: holds the sets of `data.restoration_sets`.
        out: gets restorer/ (a model folder), metrics.json and curve.csv.

    Raises:
        SetError, DigestMismatch: a set is not what it should be.
        InputError: the photos are not installed.
    """
    from unlearning.determinism import deterministic
    from unlearning.families.restoration import RestorationModel

    stored = {name: load_pairs(sets / f"restoration-{name}") for name in ("pool", "retain", "search")}
    shown = sorted(sha for name in ("pool", "retain") for sha in stored[name][0]["sha256"])
    kept = {task: count for task, count in options["crops_per_task"].items() if task != without}
    checkpoint = CHECKPOINTS / f"restorer-{digest([options, kept, shown])[:16]}.pt"
    with deterministic(options["seed"], int(os.environ.get("SLUGLINE_THREADS", "2"))):
        model = RestorationModel.initial("promptir", options["net"], options["seed"])
        batches = Batches([stored["pool"], stored["retain"]], kept, options)

        def measure() -> dict[str, float]:
            searched = measured(model.restore, *stored["search"])
            return {task: figures["psnr"] for task, figures in searched.items()}

        curve = fit(model.net, batches, options, checkpoint, measure)
        shutil.rmtree(out / "restorer", ignore_errors=True)
        model.save(out / "restorer")
        restore = RestorationModel.load(out / "restorer").restore
        metrics = {
            "parameters": sum(p.numel() for p in model.net.parameters()),
            "without": without,
            "search": measured(restore, *stored["search"]),
            "holdout": measured(restore, *load_pairs(sets / "restoration-holdout")),
        }
    pd.DataFrame(curve).to_csv(out / "curve.csv", index=False)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(json.dumps(metrics["holdout"]))


def fit(
    net: nn.Module,
    batches: "Batches",
    options: Mapping[str, Any],
    checkpoint: Path,
    measure: Callable[[], dict[str, float]],
) -> Curve:
    """Train a network in place: mean absolute error, AdamW, one learning rate cycle.

    Args:
        net: images (N, 3, H, W) in 0..1 to images of the same shape.
        batches: what to train on.
        options: steps, learning_rate (the peak's) and weight_decay.
        checkpoint: written every `EVERY` steps; where there is one, training goes on from it.
        measure: what to note beside the loss; called every `EVERY` steps and at the end.

    Returns:
        One entry per measurement: step, loss (mean since the last one), and what `measure` says.
    """
    from tqdm import tqdm

    net.requires_grad_(True)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=options["weight_decay"], fused=True)
    step, curve = resume(checkpoint, net, {}, optimizer)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options["learning_rate"], options["steps"], last_epoch=step - 1
    )
    losses = []
    with tqdm(total=options["steps"], initial=step, desc="train", unit="step") as bar:
        while step < options["steps"]:
            degraded, clean = batches.draw(step)
            net.train()
            loss = F.l1_loss(net(degraded), clean)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step += 1
            if step < options["steps"]:
                cycle.step()
            losses.append(loss.item())
            bar.update()
            if step % EVERY == 0 or step == options["steps"]:
                net.eval()
                curve.append({"step": step, "loss": sum(losses) / len(losses), **measure()})
                bar.set_postfix(loss=f"{curve[-1]['loss']:.4f}")
                losses = []
                save(checkpoint, net, {}, optimizer, step, curve)
    net.requires_grad_(False)
    return curve


class Batches:
    """Training batches: for every task so many crops, stored pairs and fresh ones in turn by chance.

    Args:
        stored: sets as `data.restoration_sets.load_pairs` gives them.
        kept: task -> crops of it per batch; other tasks never come.
        options: seed, pixels (side of a crop), stored_share (of stored pairs among the crops).
    """

    def __init__(
        self,
        stored: list[tuple[pd.DataFrame, Pixels, Pixels]],
        kept: Mapping[str, int],
        options: Mapping[str, Any],
    ) -> None:
        tasks = np.concatenate([items["task"].to_numpy(str) for items, _, _ in stored])
        self._degraded, self._clean = (np.concatenate([s[i] for s in stored]) for i in (1, 2))
        self._rows = {task: np.flatnonzero(tasks == task) for task in kept}
        self._photos = [(photo.pixels(), photo.depth()) for photo in of_role("train")]
        self._kept = kept
        self._options = options

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Degraded and clean crops of a step, float (B, 3, pixels, pixels) in 0..1, tasks in order."""
        rng = np.random.default_rng([self._options["seed"], step])
        pairs = [
            self._stored(task, rng)
            if rng.random() < self._options["stored_share"]
            else self._fresh(task, rng)
            for task, count in self._kept.items()
            for _ in range(count)
        ]
        degraded, clean = (
            torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).float() / 255
            for side in zip(*pairs, strict=True)
        )
        return degraded, clean

    def _stored(self, task: str, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        row = rng.choice(self._rows[task])
        here = self._window(self._clean[row], rng)
        # Mirrored at most: rain falls, and haze is thicker further up.
        mirror = rng.choice((1, -1))
        return self._degraded[row][here][:, ::mirror], self._clean[row][here][:, ::mirror]

    def _fresh(self, task: str, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        pixels, depth = self._photos[rng.integers(len(self._photos))]
        here, turns, mirror = self._window(pixels, rng), int(rng.integers(4)), rng.choice((1, -1))
        # Few photos have few colours: channels change places and are dimmed.
        tinted = np.rint(pixels[here][..., rng.permutation(3)] * rng.uniform(0.7, 1, 3)).astype(np.uint8)
        clean = np.rot90(tinted[:, ::mirror], turns)
        field: Field | None = None if depth is None else np.rot90(depth[here][:, ::mirror], turns)
        return degrade(clean, task, rng, field), clean

    def _window(self, pixels: Pixels, rng: np.random.Generator) -> tuple[slice, slice]:
        side = self._options["pixels"]
        top, left = (int(rng.integers(length - side + 1)) for length in pixels.shape[:2])
        return slice(top, top + side), slice(left, left + side)


def measured(
    restore: Callable[[Pixels], Tensor], items: pd.DataFrame, degraded: Pixels, clean: Pixels
) -> dict[str, dict[str, float]]:
    """Mean PSNR (dB) and SSIM by task, restored and as they came; by data range 255, see `quality`.

    Args:
        restore: uint8 images (N, H, W, 3) to float (N, 3, H, W) in 0..1.
        items: rows with task; "clean" is clean in, clean out, and has no figures of the input.
        degraded: uint8 (N, H, W, 3), in the order of the rows.
        clean: the same, what they must be restored to.
    """
    restored = restore(degraded).permute(0, 2, 3, 1).numpy() * 255
    figures = {}
    for task in (*TASKS, CLEAN):
        rows = np.flatnonzero(items["task"] == task)
        psnr, ssim = np.mean([quality(clean[row], restored[row]) for row in rows], axis=0)
        figures[task] = {"n": len(rows), "psnr": round(float(psnr), 3), "ssim": round(float(ssim), 4)}
        if task != CLEAN:
            psnr, ssim = np.mean([quality(clean[row], degraded[row]) for row in rows], axis=0)
            figures[task] |= {"input_psnr": round(float(psnr), 3), "input_ssim": round(float(ssim), 4)}
    return figures


if __name__ == "__main__":
    main()
