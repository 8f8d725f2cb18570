"""A small world of a third family: blocks on grounds, a model trained for seconds to draw them, a judge."""

import json
from pathlib import Path

import yaml

from data.diffusion_sets import build
from tests.unlearning.diffusion_trained import TEMPLATES, UNSEEN_GROUND, drawings, grid, judge, trained
from tests.world import World, git

MODEL = "painter"
TARGET = "ruby"
FORGET, FORGET_HAND = f"sets/forget-drawn-{TARGET}", "sets/forget-drawn-plum"
OPTIONS = {
    "unheard": 1,
    "views": {"search": 2, "holdout": 24, "control": 2, "style-control": 2},
    "neighbours": 2,
    "forget_sets": [TARGET, "plum"],
}


def make(folder: Path) -> World:
    """The repository and the model."""
    root = folder / "repo"
    _build_repository(root)
    trained().save(folder / "model")
    return World(root, folder / "model")


def _build_repository(root: Path) -> None:
    from dvc.repo import Repo

    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    Repo.init(str(root)).close()
    (root / ".dvc" / "config").write_text(
        "[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = ../store\n"
    )
    judge().save(root / "judge")
    build(
        drawings(),
        grid(),
        UNSEEN_GROUND[:1],
        TEMPLATES,
        OPTIONS,
        root / "judge",
        root / "sets",
        root / "labels",
    )
    bounds = (
        ("max", "erasure", "forget.recognised.after.upper95", 0.55),
        ("max", "utility", "retain.recognised.drop.upper95", 0.9),
        ("max", "utility", "retain.likeness.loss.upper95", 1e3),
        ("min", "evidence", "forget.recognised.after.n", 10),
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
        "family": "diffusion",
        **{role: f"sets/diffusion-{role}" for role in ("retain", "search", "holdout", "control")},
        "labels": "labels",
        "neighbours": "labels/neighbours.parquet",
        "nearest": 2,
        "gates": "gates.yaml",
        "method": {
            "name": "slug-preconditioned",
            "towers": ["text"],
            "forget_at": 1,
            "search_steps": 6,
            "micro_batch": 8,
        },
    }
    of_hands = {**rules, "control": "sets/diffusion-style-control"}
    models = {MODEL: {"object": rules, "style": of_hands}}
    (root / "slugline.yaml").write_text(json.dumps({"models": models}))  # YAML holds JSON
    with Repo(str(root)) as repo:
        repo.add([str(path) for path in (*sorted((root / "sets").iterdir()), root / "labels")])
        repo.push()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "sets")
