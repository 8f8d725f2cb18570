"""How often does the method pass its gates?  `python -m bench.survey --concepts 40 --json`

Concepts are drawn by seed from the vocabulary, never picked: each is forgotten by itself, from the same
base model, and judged by the gates of slugline.yaml on the holdout hands.  Nothing is registered.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from bench.models import Base, add_model_options, base_model
from bench.requests import linked_sets, plan_for
from contracts.errors import SluglineError
from contracts.values import Axis, Measurements, Plan, Verdict
from tasks.families.clip_inputs import read_classes, unlearn_inputs
from tasks.families.clip_measure import measured
from tasks.house import choose, repository


def main() -> None:
    """Survey seeded single concepts and print a table, or JSON with every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--concepts", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--axis", choices=("object", "style"), default="object")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", default="{}", help="overrides as JSON, for example '{\"forget_at\": 1}'")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    base, told = base_model(repository(), options.model, options.rules), json.loads(options.method)
    rows = list(survey(base, options.concepts, options.seed, options.axis, options.threads, told))
    counts = Counter(row["verdict"] for row in rows)
    if options.json:
        found = {"model": base.label, "verdicts": counts, "median_drop": _median(rows), "rows": rows}
        print(json.dumps(found, indent=2))
    else:
        drop = f"median TA@1 drop {100 * _median(rows):.1f} points"
        print(f"{base.label}, {len(rows)} requests: {dict(counts)}; {drop}")


def survey(
    base: Base, count: int, seed: int, axis: Axis, threads: int, overrides: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row per concept: verdict, the gates that failed, and the headline figures."""
    repo = repository()
    house = base.houses(repo)[axis]
    with linked_sets(repo, house) as folder:
        known = sorted(read_classes(folder, axis).known)
        chosen = np.random.default_rng(seed).choice(known, min(count, len(known)), replace=False).tolist()
        model = base.load()
        for position, concept in enumerate(chosen, start=1):
            method = choose(house, {"method": overrides}).method
            plan = plan_for(repo, house, axis, (concept,), method, threads)
            began = monotonic()
            row = {"concept": concept, **_forget(plan, folder, base, model, repo / house.gates)}
            print(f"{position}/{len(chosen)} {row['verdict']} {monotonic() - began:.1f} s", file=sys.stderr)
            yield row


def _forget(plan: Plan, folder: Path, base: Base, original: Any, gates: Path) -> dict[str, Any]:
    from gates.runner import run_suite
    from gates.suite import load_suite
    from unlearning.determinism import deterministic
    from unlearning.methods import unlearn

    with deterministic(plan.seed, plan.threads):
        edited = base.load()
        outcome = unlearn(edited, unlearn_inputs(plan, folder, edited.image_size), plan.method)
        figures = measured(plan, folder, original, edited, {e.tower for e in outcome.edits}).figures
    verdict = run_suite(load_suite(gates), figures).verdict
    return _row(figures, verdict, [e.layer for e in outcome.edits])


def _row(figures: Measurements, verdict: Verdict, layers: list[str]) -> dict[str, Any]:
    before, after, kept = (
        figures.rates["forget.fa1.before"],
        figures.rates["forget.fa1.after"],
        figures.drops["retain.ta1"],
    )
    return {
        "verdict": verdict.decision,
        "missed": list(verdict.missed),
        "layers": layers,
        "fa1_before": before.estimate,
        "fa1_after": after.estimate,
        "fa5_after": figures.rates["forget.fa5.after"].estimate,
        "ta1_before": kept.before,
        "ta1_after": kept.after,
        "ta1_drop_upper95": kept.upper95,
        "neighbours_drop_upper95": figures.drops["neighbours.ta1"].upper95,
    }


def _median(rows: list[dict[str, Any]]) -> float:
    return float(np.median([row["ta1_before"] - row["ta1_after"] for row in rows]))


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.survey: {error}")
