"""Many concepts: one edit from the base model for all of them, or one edit after another?

`python -m bench.sequence --counts 1,2,5,10,25,50 --json`

`union` re-derives, as `edit_from: original` does: one request for the first n concepts, from the base
model.  `chain` forgets one concept at a time, each from the model that the one before left, as with
`edit_from: champion`.  Concepts are drawn by seed; both ways
are measured on the holdout hands, over all concepts forgotten so far and all that should be left.
Seconds are those of the edits, all of the chain's so far; measuring does not count.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from bench.holdout import Holdout
from bench.models import Base, add_model_options, base_model
from bench.requests import linked_sets, plan_for, usable
from contracts.errors import SluglineError
from contracts.values import Method, Plan
from tasks.families.clip_inputs import unlearn_inputs
from tasks.house import choose, repository
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.methods import unlearn

RATES = ("forget.fa1", "forget.fa5", "control.fa1")


def main() -> None:
    """Measure both ways at every count, and print a table, or JSON with every figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--counts", default="1,2,5,10,25,50", help="how many concepts, ascending")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", default="{}", help="overrides of the house's method as JSON")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    counts = sorted({int(n) for n in options.counts.split(",")})
    base, rows = base_model(repository(), options.model, options.rules), []
    for row in sequence(base, counts, options.seed, options.threads, json.loads(options.method)):
        print(_line(row), file=sys.stderr)
        rows.append(row)
    if options.json:
        print(json.dumps({"model": base.label, "rows": rows}, indent=2))


def sequence(
    base: Base, counts: Sequence[int], seed: int, threads: int, overrides: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One row per way and count; a way that fails ends with a row that says why."""
    repo = repository()
    house = base.houses(repo)["object"]
    method = choose(house, {"method": overrides}).method
    with linked_sets(repo, house) as folder:
        known = sorted(usable(folder, "object"))
        drawn = np.random.default_rng(seed).permutation(known)[: counts[-1]].tolist()

        def plan_of(targets: Sequence[str]) -> Plan:
            return plan_for(repo, house, "object", tuple(targets), method, threads)

        original = base.load()
        held = {n: Holdout.read(plan_of(drawn[:n]), folder, original) for n in counts}
        for n in counts:
            model = base.load()
            taken, error = _forget(model, plan_of(drawn[:n]), folder)
            yield _row("union", held[n], model, method, taken, error)
        model, seconds = base.load(), 0.0
        for done, concept in enumerate(drawn, start=1):
            plan = replace(plan_of([concept]), erased_before=tuple(drawn[: done - 1]))
            taken, error = _forget(model, plan, folder)
            seconds += taken
            if done in counts or error:
                shown = held.get(done) or Holdout.read(plan_of(drawn[:done]), folder, original)
                yield _row("chain", shown, model, method, seconds, error)
            if error:
                return


def _forget(model: ClipModel, plan: Plan, folder: Path) -> tuple[float, str | None]:
    """Edit the model; CPU seconds of that, its sets read, and what went wrong, if it could not be."""
    began, error = process_time(), None
    with deterministic(plan.seed, plan.threads):
        try:
            unlearn(model, unlearn_inputs(plan, folder, model.image_size), plan.method)
        except SluglineError as failed:
            error = f"{type(failed).__name__}: {failed}"
    return process_time() - began, error


def _row(
    way: str, held: Holdout, model: ClipModel, method: Method, seconds: float, error: str | None
) -> dict[str, Any]:
    figures = held.figures(held.features(model, ("vision", "text")))
    return {
        "way": way,
        "concepts": len(held.plan.targets),
        "method": method.name,
        "towers": method.towers,
        **{name: asdict(figures.rates[f"{name}.after"]) for name in RATES},
        "ta1": asdict(figures.drops["retain.ta1"]),
        "neighbours": asdict(figures.drops["neighbours.ta1"]),
        "cpu_seconds": round(seconds, 1),
        "error": error,
    }


def _line(row: dict[str, Any]) -> str:
    fa1, fa5, ta1 = row["forget.fa1"]["estimate"], row["forget.fa5"]["estimate"], row["ta1"]
    return (
        f"{row['way']} {row['concepts']:>3} concepts: FA@1 {100 * fa1:5.1f} %  FA@5 {100 * fa5:5.1f} %  "
        f"TA@1 {100 * ta1['before']:.1f} -> {100 * ta1['after']:.1f} %  {row['cpu_seconds']:.0f} CPU s"
        + (f"  {row['error']}" if row["error"] else "")
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.sequence: {error}")
