"""Forgetting a name: methods on the vision-language model.  `python -m bench.vlm --json`

Names are drawn by seed from the vocabulary, never picked, and families of names (`--families`) as
`bench.compare` draws them: each request is carried out by itself, from the same base model, and judged by the
gates of slugline.yaml on the holdout hands.  Methods differ in where the gradient comes from; how far they go
is decided by answers for all of them.

    ..., clip       gradients of the matching CLIP model's losses, as in the paper (arXiv 2407.11867, 4.3)
    ..., answers    gradients of the answers' likelihood
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.provenance import provenance
from bench.requests import Request, draw, linked_sets, plan_for, usable
from bench.variants import picked_from
from bench.vlm_relearning import RATE, relearned, table
from contracts.canonical import from_plain
from contracts.errors import SluglineError
from contracts.values import Measurements, Method
from gates.runner import run_suite
from gates.suite import load_suite
from tasks.families import vlm
from tasks.house import Rules, repository, rules
from tasks.plan import read_labels
from unlearning import methods
from unlearning.determinism import deterministic
from unlearning.families.vlm import VlmModel

if TYPE_CHECKING:
    import pandas as pd

MODEL = "data/models/vlm"
RULES = "emoji-vlm"
HOUSE = "the house's"
FIGURES = (
    "forget.named",
    "forget.reworded",
    "forget.affirmed",
    "control.affirmed",
    "retain.named",
    "neighbours.named",
    "cross.count",
    "cross.colour",
)
# What everybody searches with who edits the tower: none of the name's words among the five likeliest.
VISION: Mapping[str, Any] = {"towers": ["vision"], "forget_at": 5}
# Label -> what replaces the house's method and its options.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "slug, clip": {"name": "slug", "objective": "clip", **VISION},
    "slug, answers": {"name": "slug", **VISION},
    "slug-preconditioned, clip": {
        "name": "slug-preconditioned",
        "objective": "clip",
        "options": {"layers": 20},
        **VISION,
    },
    "slug-preconditioned, answers": {"name": "slug-preconditioned", "options": {"layers": 20}, **VISION},
    "slug-preconditioned, answers, output factor": {
        "name": "slug-preconditioned",
        "options": {"layers": 20, "output_epsilon": 0.1},
        **VISION,
    },
    HOUSE: {},
    "the house's, last words": {"name": "unsay", "options": {"words": "last"}},
    "the house's, all words": {"name": "unsay", "options": {"words": "all"}},
    "scrub": {"name": "scrub", **VISION},
    "scrub, names alone": {"name": "scrub", "options": {"features": 0.0, "answers": 0.0}, **VISION},
    "gradient ascent": {"name": "gradient-ascent", "options": {"steps": 20}, **VISION},
    "slug, language": {"name": "slug", "towers": ["language"], "forget_at": 5},
}


def main() -> None:
    """Measure every method and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help=f"model folder  [default: {MODEL}]")
    parser.add_argument("--concepts", type=int, default=8)
    parser.add_argument("--families", type=int, default=0, help="of names, each forgotten at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default="", help="labels, separated by semicolons; all if not given")
    parser.add_argument("--forget-at", type=int, help="instead of the house's")
    parser.add_argument("--relearn", type=float, nargs="?", const=RATE, help=f"train on after, at [{RATE:g}]")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    picked = picked_from(options.methods, VARIANTS)
    folder = options.model or repository() / MODEL
    told = {} if options.forget_at is None else {"forget_at": options.forget_at}
    counts = options.concepts, options.families
    rows = []
    for row in compare(folder, counts, options.seed, picked, options.threads, told, options.relearn):
        print(line(row), file=sys.stderr)
        rows.append(row)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for label in picked:
            own = [row for row in rows if (row["kind"], row["method"]) == (kind, label)]
            print(f"{kind:<7} {summary(label, own)}", file=sys.stderr)
            if options.relearn is not None:
                print(table(own), file=sys.stderr)
    if options.json:
        print(json.dumps({"provenance": provenance("bench.vlm"), "rows": rows}, indent=2))


def compare(
    folder: Path,
    counts: tuple[int, int],
    seed: int,
    picked: list[str],
    threads: int,
    told: Mapping[str, Any],
    relearn: float | None = None,
) -> Iterator[dict[str, Any]]:
    """A row for every request and method.

    Args:
        folder: of the model.
        counts: how many single names, and how many families.
        seed: of the draw.
        picked: labels of `VARIANTS`.
        threads: of torch.
        told: replaces parts of the house's method for all of them.
        relearn: the learning rate at which every candidate is trained on; not at all if not given.

    Raises:
        SluglineError: a set or the model is unusable.
    """
    repo = repository()
    house = rules(repo, RULES, "object")
    with linked_sets(repo, house) as sets:
        original = VlmModel.load(folder)
        labels = read_labels(sets / "labels")
        for request in drawn(labels, usable(sets, "object"), counts, seed):
            for label in picked:
                row = forget(repo, house, request, label, sets, folder, original, threads, told, relearn)
                yield {
                    "request": request.name,
                    "kind": request.kind,
                    "names": len(request.targets),
                    "method": label,
                    **row,
                }


def drawn(
    labels: "pd.DataFrame", pictured: frozenset[str], counts: tuple[int, int], seed: int
) -> list[Request]:
    """Single names of the vocabulary, then families of names; fewer where there are not as many.

    Args:
        labels: as `tasks.plan.read_labels` gives them.
        pictured: the ids that can be in a family, as `bench.requests.usable` gives them.
        counts: of single names, and of families.
        seed: of the draw.
    """
    names, families = counts
    known = sorted(labels.loc[labels["seen"] & (labels["axis"] == "object"), "id"])
    chosen = np.random.default_rng(seed).choice(known, min(names, len(known)), replace=False).tolist()
    singles = [Request("single", (name,)) for name in chosen]
    return [*singles, *draw(labels, {"object": pictured}, {"family": families}, seed)]


def forget(
    repo: Path,
    house: Rules,
    asked: Request,
    label: str,
    sets: Path,
    folder: Path,
    original: VlmModel,
    threads: int,
    told: Mapping[str, Any],
    relearn: float | None,
) -> dict[str, Any]:
    """One request by one method: verdict, gates that were missed, headline figures, and what it took."""
    changes = VARIANTS[label]
    own = {**house.method, "options": {}} if changes else house.method
    method = from_plain(Method, {**own, **told, **changes})
    plan = plan_for(repo, house, "object", asked.targets, method, threads)
    with deterministic(plan.seed, plan.threads):
        edited = VlmModel.load(folder)
        request = vlm.request(plan, sets, edited)
        began = process_time()
        outcome = methods.unlearn(edited, request, plan.method)
        spent = process_time() - began
        figures = vlm.measured(plan, sets, original, edited, set(method.towers)).figures
        again = {} if relearn is None else relearned(original, edited, request, plan, sets, relearn)
    verdict = run_suite(load_suite(repo / house.gates), figures).verdict
    return {
        "verdict": verdict.decision,
        "missed": list(verdict.missed),
        "reached_target": outcome.reached_target,
        "layers": [edit.layer for edit in outcome.edits],
        "cpu_seconds": round(spent, 1),
        **headline(figures),
        **again,
    }


def headline(figures: Measurements) -> dict[str, float]:
    """Rates before and after, in 0..1."""
    return {
        f"{name}_{state}": round(figures.rates[f"{name}.{state}"].estimate, 4)
        for name in FIGURES
        for state in ("before", "after")
        if f"{name}.{state}" in figures.rates
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    told = "  ".join(
        f"{name.removesuffix('_after')} {row[name.replace('_after', '_before')]:.1%} -> {row[name]:.1%}"
        for name in row
        if name.endswith("_after")
    )
    return (
        f"{row['request']} ({row['names']}) {row['method']:<30} {row['verdict']:<22} {told}  "
        f"{len(row['layers'])} tensors ({row['layers'][0]}), {row['cpu_seconds']} CPU s"
    )


def summary(label: str, rows: list[dict[str, Any]]) -> str:
    """Verdicts of a method, and medians."""
    lost = statistics.median(row["retain.named_before"] - row["retain.named_after"] for row in rows)
    left = statistics.median(row["forget.named_after"] for row in rows)
    spent = statistics.median(row["cpu_seconds"] for row in rows)
    return (
        f"{label:<30} {dict(Counter(row['verdict'] for row in rows))}, median: still named {left:.1%}, "
        f"names lost {100 * lost:.1f} points, {spent:.0f} CPU s"
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.vlm: {error}")
