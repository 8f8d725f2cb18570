"""Stage `train-judge`: an independent classifier of objects and hands, from drawings alone.

Run as `python -m data.train_judge`.  The judge never sees the CLIP or anything that a model drew.  Its
objects are those of the grid and the controls, by all hands of the corpus that draw them in colour; hands
are those of the grid and one that the diffusion model never drew, the control of a request about a hand.
They are told apart on all objects that they drew, so a hand is not known by what it drew.

Judged on what it did not see: objects by the held hand, hands on every eighth other object.  Samples of a
diffusion model are softer than drawings, so a third of what it is shown is blurred and noisy.
"""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.canonical import digest
from data.batches import Batches
from data.checkpoint import resume, save
from data.emoji_grid import Grid, choose_grid, read_seen
from data.precision import half_where_native
from unlearning.judge import Judge, JudgeConfig, JudgeNet

OUT = Path("data/models")
CHECKPOINTS = Path(".slugline/train")
EVERY = 250
# No label: a drawing whose object, or whose hand, is not to be told.
NONE = -100


def main() -> None:
    """Train, resuming from the checkpoint of the same parameters; write the judge and its metrics."""
    import yaml

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="gets judge/ and judge.json")
    told = parser.parse_args()
    params = yaml.safe_load(Path("params.yaml").read_text())
    drawings = pd.read_parquet("data/corpus/drawings.parquet")
    grid = choose_grid(drawings, read_seen(pd.read_parquet("data/labels/labels.parquet")), params["grid"])
    train(drawings, grid, params, told.out)


def train(drawings: pd.DataFrame, grid: Grid, params: dict[str, Any], out: Path) -> None:
    """Train on the drawings' views and publish; see `main`."""
    from tqdm import tqdm

    options, size = params["judge"], params["diffusion"]["size"]
    torch.set_num_threads(int(os.environ.get("SLUGLINE_THREADS", "2")))
    torch.manual_seed(options["seed"])
    shown = labelled(drawings, grid, options)
    pixels = squares(Batches.pixels(shown))
    held = (shown["held"] != "").to_numpy()
    net = JudgeNet(options["width"], len(grid.objects) + len(grid.controls), len(hands(grid, options)))
    net.to(memory_format=torch.channels_last)
    averaged = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=options["weight_decay"], fused=True)
    name = digest([options, params["grid"], size, sorted(shown["sha256"])])[:16]
    checkpoint = CHECKPOINTS / f"judge-{name}.pt"
    step, curve = resume(checkpoint, net, averaged, optimizer)
    rows = torch.from_numpy(np.flatnonzero(~held))
    labels = torch.tensor(shown[["object_label", "style_label"]].to_numpy())
    with tqdm(total=options["steps"], initial=step, desc="judge", unit="step") as bar:
        while step < options["steps"]:
            _train_step(net, optimizer, pixels, labels, rows, step, size, options)
            decay = min(options["average"], (step + 1) / (step + 20))
            for key, value in net.state_dict().items():
                averaged[key].lerp_(value, 1 - decay) if value.is_floating_point() else averaged[key].copy_(
                    value
                )
            step += 1
            bar.update()
            if step % EVERY == 0 or step == options["steps"]:
                judge = judge_of(grid, drawings, averaged, size, options)
                curve.append({"step": step, **metrics(judge, shown, pixels)})
                bar.set_postfix({k: round(v, 3) for k, v in curve[-1].items()})
                save(checkpoint, net, averaged, optimizer, step, curve)
    judge = judge_of(grid, drawings, averaged, size, options)
    judge.save(out / "judge", torch.float16)
    found = {k: round(v, 4) for k, v in metrics(Judge.load(out / "judge"), shown, pixels).items()}
    (out / "judge.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


def labelled(drawings: pd.DataFrame, grid: Grid, options: dict[str, Any]) -> pd.DataFrame:
    """The drawings to show, with `object_label`, `style_label` (NONE where it is not asked) and `held`.

    `held` is "object" for the held hand's drawings, "style" for objects kept back from the style head.
    """
    objects = {thing: i for i, thing in enumerate([*grid.objects, *grid.controls])}
    styles = {style: i for i, style in enumerate(hands(grid, options))}
    coloured = drawings[
        drawings["style_name"].isin([*styles, *options["more_styles"], options["held_style"]])
    ]
    shown = coloured[coloured["object"].isin(objects) | coloured["style_name"].isin(styles)].copy()
    shown["object_label"] = shown["object"].map(objects).fillna(NONE).astype(int)
    shown["style_label"] = shown["style_name"].map(styles).fillna(NONE).astype(int)
    others = sorted(set(shown["object"]) - set(objects))
    kept = shown["object"].isin(others[::8])
    shown["held"] = np.where(
        kept, "style", np.where(shown["style_name"] == options["held_style"], "object", "")
    )
    return shown.reset_index(drop=True)


def hands(grid: Grid, options: dict[str, Any]) -> tuple[str, ...]:
    """Names of the hands that the judge tells apart: those of the grid, then the controls."""
    return (*grid.styles, *options["control_styles"])


def squares(drawings: Tensor) -> Tensor:
    """RGBA uint8 (N, H, W, 4) to what is drawn in training: premultiplied fp16 (N, 4, H, W) in 0..1."""
    pixels = drawings.permute(0, 3, 1, 2).half() / 255
    return torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], 1)


def view(layers: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Seeded views (N, 3, size, size) in -1..1: moved a little, slightly recoloured, some soft and noisy."""
    n = len(layers)
    spin, grow, stretch, right, up = 2 * torch.rand(5, n, generator=generator) - 1
    angle, scale = math.radians(10) * spin, 1 / (1 + 0.12 * grow)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    across = torch.stack([cos * (1 + 0.08 * stretch), -sin, 0.12 * right], 1)
    down = torch.stack([sin, cos * (1 - 0.08 * stretch), 0.12 * up], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), [n, 4, size, size], align_corners=False)
    moved = F.grid_sample(layers.float(), grid, align_corners=False)
    image = moved[:, :3] + 1 - moved[:, 3:]
    tint = 1 + 0.06 * torch.randn(n, 3, 1, 1, generator=generator)
    image = 2 * (image * tint).clamp(0, 1) - 1
    soft = (torch.rand(n, 1, 1, 1, generator=generator) < 0.35).float()
    image = torch.lerp(image, F.avg_pool2d(image, 3, 1, 1, count_include_pad=False), soft)
    noisy = 0.12 * torch.rand(n, 1, 1, 1, generator=generator) * soft
    return image + noisy * torch.randn(image.shape, generator=generator)


def judge_of(
    grid: Grid, drawings: pd.DataFrame, weights: dict[str, Tensor], size: int, options: dict[str, Any]
) -> Judge:
    """The judge with the ids of the grid."""
    ids = drawings.drop_duplicates("style_name").set_index("style_name")["style"]
    styles = tuple(str(ids[name]) for name in hands(grid, options))
    config = JudgeConfig(1, size, options["width"], (*grid.objects, *grid.controls), styles)
    return Judge(config, weights)


def metrics(judge: Judge, shown: pd.DataFrame, pixels: Tensor) -> dict[str, float]:
    """Top-1 of objects by the held hand, and of hands on the objects kept back."""
    found = {}
    for axis in ("object", "style"):
        rows = shown.index[(shown["held"] == axis) & (shown[f"{axis}_label"] != NONE)]
        said = judge(images(pixels[torch.tensor(rows.to_numpy())], judge.config.size))
        wanted = torch.tensor(shown.loc[rows, f"{axis}_label"].to_numpy())
        logits = said.objects if axis == "object" else said.styles
        found[f"held_{axis}"] = (logits.argmax(1) == wanted).float().mean().item()
    return found


def images(layers: Tensor, size: int) -> Tensor:
    """Premultiplied drawings (N, 4, H, W) on white as uint8 (N, size, size, 3)."""
    small = F.interpolate(layers.float(), size=(size, size), mode="area")
    shown = (small[:, :3] + 1 - small[:, 3:]).clamp(0, 1)
    return (shown * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _train_step(
    net: JudgeNet,
    optimizer: torch.optim.Optimizer,
    pixels: Tensor,
    labels: Tensor,
    rows: Tensor,
    step: int,
    size: int,
    options: dict[str, Any],
) -> None:
    """One step of the two cross-entropies over a seeded batch."""
    generator = torch.Generator().manual_seed(options["seed"] * 1_000_003 + step)
    warm = min(1.0, (step + 1) / 100) * (
        0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / options["steps"]))
    )
    for group in optimizer.param_groups:
        group["lr"] = options["learning_rate"] * warm
    # Half of a batch is of the objects that are to be told, the other half of any.
    asked = rows[labels[rows, 0] != NONE]
    half = options["batch"] // 2
    drawn = torch.cat(
        [part[torch.randint(len(part), (half,), generator=generator)] for part in (asked, rows)]
    )
    shown = view(pixels[drawn], size, generator).contiguous(memory_format=torch.channels_last)
    net.train()
    with half_where_native():
        said = net(shown)
    parts = [
        F.cross_entropy(logits.float(), labels[drawn, i], ignore_index=NONE, label_smoothing=0.05)
        for i, logits in enumerate(said[:2])
    ]
    optimizer.zero_grad()
    (parts[0] + parts[1]).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


if __name__ == "__main__":
    main()
