"""A small world of another family: photos' crops, degraded, and a restorer trained for seconds on them."""

from pathlib import Path

import torch
from torch.nn import functional

from data.restoration_sets import build, load_pairs
from tests.repository import begin, finish, write_gates
from tests.unlearning.restoration_tiny import SIZES
from tests.world import World
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
    begin(root)
    build(OPTIONS, root / "sets", root / "table", root / "labels")
    bounds = (
        ("max", "erasure", "forget.restored.after.upper95", 0.9),
        ("max", "utility", "retain.psnr.loss.upper95", 6.0),
        ("max", "utility", "neighbours.worst.psnr.loss.upper95", 8.0),
        ("min", "evidence", "forget.restored.after.n", 10),
    )
    write_gates(root / "gates.yaml", bounds)
    rules = {
        "family": "restoration",
        **{role: f"sets/restoration-{role}" for role in ("retain", "search", "holdout", "control")},
        "labels": "labels",
        "gates": "gates.yaml",
        "method": {"towers": ["net"], "forget_target": 0.5, "search_steps": 5, "micro_batch": 16},
    }
    clip = {**rules, "family": "clip"}
    models = {MODEL: {"object": rules}, "mistaken": {"object": clip}}
    finish(root, models)


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
