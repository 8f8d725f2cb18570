"""A small world of a third family: blocks on grounds, a model trained for seconds to draw them, a judge."""

from pathlib import Path

from data.diffusion_sets import build
from tests.repository import begin, finish, write_gates
from tests.unlearning.diffusion_trained import TEMPLATES, UNSEEN_GROUND, drawings, grid, judge, trained
from tests.world import World

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
    begin(root)
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
    write_gates(root / "gates.yaml", bounds)
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
    finish(root, models)
