"""A small world of another family: photos' crops, degraded, and a restorer trained for seconds on them."""

from pathlib import Path

import torch
import yaml
from torch.nn import functional

from data.restoration_sets import build, load_pairs
from tests.unlearning.restoration_tiny import SIZES
from tests.world import World, git
from unlearning.families.restoration import RestorationModel

MODEL = "restorer"
FORGET = "sets/forget-haze"
OPTIONS = {
    "seed": 3,
    "pixels": 32,
    "crops": {"pool": 2, "retain": 2, "search": 4, "holdout": 6, "control": 4},
    "forget_sets": ["haze"],
}
_STEPS = 90


def make(folder: Path) -> World:
    """The repository and the model."""
    root = folder / "repo"
    _build_repository(root)
    _train(root / "sets", folder / "model")
    return World(root, folder / "model")


def _build_repository(root: Path) -> None:
    from dvc.repo import Repo

    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    Repo.init(str(root)).close()
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = ../store\n"
    )
    build(OPTIONS, root / "sets", root / "table", root / "labels")
    bounds = (
        ("max", "erasure", "forget.restored.after.upper95", 0.9),
        ("max", "utility", "retain.psnr.loss.upper95", 6.0),
        ("max", "utility", "neighbours.worst.psnr.loss.upper95", 8.0),
        ("min", "evidence", "forget.restored.after.n", 10),
    )
    gates = [
        {
            "type": f"expect_column_{side}_to_be_between",
            "kwargs": {"column": column, f"{side}_value": value},
            "meta": {"kind": kind, "why": "for tests"},
        }
        for side, kind, column, value in bounds
    ]
    (root / "gates.yaml").write_text(yaml.safe_dump({"name": "wide", "expectations": gates}))
    rules = {
        "family": "restoration",
        **{role: f"sets/restoration-{role}" for role in ("retain", "search", "holdout", "control")},
        "labels": "labels",
        "gates": "gates.yaml",
        "method": {"towers": ["net"], "forget_target": 0.5, "search_steps": 5, "micro_batch": 16},
    }
    clip = {**rules, "family": "clip"}
    models = {MODEL: {"object": rules}, "mistaken": {"object": clip}}
    (root / "slugline.yaml").write_text(yaml.safe_dump({"models": models}))
    with Repo(str(root)) as repo:
        repo.add([str(path) for path in (*sorted((root / "sets").iterdir()), root / "labels")])
        repo.push()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "sets")


def _train(sets: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    model = RestorationModel.initial("promptir", SIZES["promptir"], 0)
    parts = [load_pairs(sets / f"restoration-{name}") for name in ("pool", "retain")]
    degraded, clean = (torch.cat([model.preprocess(part[i]) for part in parts]) for i in (1, 2))
    model.net.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=4e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(_STEPS):
        rows = torch.randperm(len(clean), generator=order)[:12]
        loss = functional.l1_loss(model.forward(degraded[rows]), clean[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.net.requires_grad_(False)
    model.save(folder)
