"""Forgetting an object or a hand: methods on the text-to-image model.  `python -m bench.diffusion --json`

    python -m bench.diffusion --target noto --axis style        one request
    python -m bench.diffusion --objects 3 --hands 2 --seed 1    requests drawn from all that it draws

Each method starts from the same model and sets, is stopped by the same search split, and is measured on
the prompts of the verdict (`tasks.families.diffusion`) in the words of UnlearnCanvas:

    UA   share of the pictures of what was forgotten that an independent judge does not ascribe to it
    IRA  share of the pictures of the others of its axis that are recognised
    CRA  share of the same pictures that are recognised on the other axis
    KID  from those to the drawings

and by the gates of slugline.yaml.

"slug, denoising loss" goes along the gradient of the concept's own denoising loss, without neutral captions.
The trained baselines take many steps in all weights of the text tower, until the search split no longer shows
the concept.
"""

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

from bench.provenance import provenance
from bench.requests import Request, draw, linked_sets, plan_for
from bench.variants import picked_from
from contracts.canonical import from_plain
from contracts.errors import InputError, SluglineError
from contracts.values import Axis, Method
from gates.runner import run_suite
from gates.suite import load_suite
from tasks.families import diffusion
from tasks.house import Rules, repository, rules
from tasks.plan import read_labels
from tasks.progress import bar
from unlearning import methods
from unlearning.determinism import deterministic
from unlearning.families.diffusion import DiffusionModel

MODEL = "data/models/diffusion"
RULES = "emoji-painter"
POOL = "data/sets/diffusion-pool"
AXES: tuple[Axis, ...] = ("object", "style")
DENOISING = "slug, denoising loss"
BUDGET = {"learning_rates": [2e-4], "steps": 24, "weight_decay": 0.0}
# Label -> method; where the search stops, and the micro-batch, are the house's.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "uce-cross-attention": {"name": "uce-cross-attention", "towers": ["unet"], "options": {"weight": 0.1}},
    "slug": {"name": "slug", "towers": ["text"]},
    "slug-preconditioned": {"name": "slug-preconditioned", "towers": ["text"]},
    "slug, unet": {"name": "slug", "towers": ["unet"]},
    "slug-preconditioned, unet": {"name": "slug-preconditioned", "towers": ["unet"]},
    DENOISING: {"name": "slug", "towers": ["text"]},
    "gradient ascent": {"name": "gradient-ascent", "towers": ["text"], "options": BUDGET},
    "ascent-finetuning": {"name": "ascent-finetuning", "towers": ["text"], "options": BUDGET},
}


def main() -> None:
    """Measure every method and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="bullseye", help="name of what to forget")
    parser.add_argument("--axis", choices=AXES, default="object", help="of the target")
    parser.add_argument("--objects", type=int, default=0, help="draw so many instead")
    parser.add_argument("--hands", type=int, default=0, help="draw so many instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--methods", default="", help="labels, separated by semicolons; all if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    picked = picked_from(options.methods, VARIANTS)
    repo, rows = repository(), []
    house = {axis: rules(repo, RULES, axis) for axis in AXES}
    if options.objects or options.hands:
        requests = drawn(repo, house, options.objects, options.hands, options.seed)
    else:
        requests = (named(repo, house, options.axis, options.target),)
    for row in compare(repo, house, repo / MODEL, requests, picked, options.threads):
        print(line(row), file=sys.stderr)
        rows.append(row)
    for axis in AXES:
        for label in picked:
            own = [row for row in rows if (row["axis"], row["method"]) == (axis, label)]
            if len(own) > 1:
                print(summary(label, own), file=sys.stderr)
    if options.json:
        print(json.dumps({"provenance": provenance("bench.diffusion"), "rows": rows}, indent=2))


def named(repo: Path, house: Mapping[Axis, Rules], axis: Axis, target: str) -> Request:
    """The request to forget what has this name.

    Raises:
        InputError: the model draws no such object or hand.
    """
    labels = read_labels(repo / house[axis].labels)
    found = labels.loc[(labels["axis"] == axis) & labels["seen"] & (labels["name"] == target), "id"]
    if found.empty:
        raise InputError(f"there is no {axis} {target!r} that the model draws")
    return Request("single" if axis == "object" else "style", (str(found.iloc[0]),))


def drawn(
    repo: Path, house: Mapping[Axis, Rules], objects: int, hands: int, seed: int
) -> tuple[Request, ...]:
    """Requests drawn from everything that the model draws."""
    labels = read_labels(repo / house["object"].labels)
    seen = {axis: frozenset(labels.loc[labels["seen"] & (labels["axis"] == axis), "id"]) for axis in AXES}
    return draw(labels, seen, {"single": objects, "style": hands}, seed)


def compare(
    repo: Path,
    house: Mapping[Axis, Rules],
    model: Path,
    requests: Sequence[Request],
    picked: Sequence[str],
    threads: int,
    pool: str = POOL,
) -> Iterator[dict[str, Any]]:
    """A row for every request and method.

    Args:
        repo: the repository that holds sets, labels and gates.
        house: the model's rules, by axis.
        model: its folder.
        requests: what to forget, each by itself.
        picked: labels of `VARIANTS`.
        threads: torch's.
        pool: where forget sets are taken from, in the repository.

    Raises:
        SluglineError: a set or a model is unusable.
    """
    for request in requests:
        own = house[request.axis]
        names = read_labels(repo / own.labels).set_index("id")["name"]
        with linked_sets(repo, own, pool) as sets:
            for label in picked:
                told = {name: own.method[name] for name in ("forget_at", "micro_batch")}
                method = from_plain(Method, {**told, **VARIANTS[label]})
                yield {
                    "method": label,
                    "axis": request.axis,
                    "target": names[request.targets[0]],
                    **forget(repo, own, request, label, method, sets, model, threads),
                }


def forget(
    repo: Path,
    house: Rules,
    request: Request,
    label: str,
    method: Method,
    sets: Path,
    model: Path,
    threads: int,
) -> dict[str, Any]:
    """One request by one method: verdict, gates that were missed, figures, and what it took."""
    plan = plan_for(repo, house, request.axis, request.targets, method, threads)
    with deterministic(plan.seed, threads):
        edited = DiffusionModel.load(model)
        inputs = diffusion.request(plan, sets, edited)
        if label == DENOISING:
            inputs = replace(inputs, goal=None)
        began = process_time()
        with bar(label) as tell:
            outcome = methods.unlearn(edited, inputs, method, tell)
        spent = process_time() - began
        original = DiffusionModel.load(model)
        found = diffusion.measured(plan, sets, original, edited, method.towers).figures
    verdict = run_suite(load_suite(repo / house.gates), found).verdict
    rates, likeness = found.rates, found.levels["retain.likeness"]
    return {
        "verdict": verdict.decision,
        "missed": list(verdict.missed),
        "reached_target": outcome.reached_target,
        "cpu_seconds": round(spent, 1),
        "tensors": len(outcome.edits),
        **{
            name: {
                state: round(rates[f"{group}.recognised.{state}"].estimate, 3)
                for state in ("before", "after")
            }
            for name, group in (("forget", "forget"), ("IRA", "retain"), ("CRA", "cross"))
        },
        "UA": round(1 - rates["forget.recognised.after"].estimate, 3),
        "n": rates["forget.recognised.after"].n,
        "KID": {state: round(-getattr(likeness, state), 4) for state in ("before", "after")},
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    ira, cra, kid = (
        f"{row[name]['before']:.3f} -> {row[name]['after']:.3f}" for name in ("IRA", "CRA", "KID")
    )
    return (
        f"{row['method']:<28} {row['target']}: {row['verdict']}, UA {row['UA']:.1%} of {row['n']}  "
        f"IRA {ira}  CRA {cra}  KID {kid}  {row['tensors']} tensors, {row['cpu_seconds']} CPU s"
    )


def summary(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts of a method on requests of one axis, and medians."""
    lost = {
        name: 100 * statistics.median(row[name]["before"] - row[name]["after"] for row in rows)
        for name in ("IRA", "CRA")
    }
    return (
        f"{label:<28} {rows[0]['axis']}: {dict(Counter(row['verdict'] for row in rows))}, median: "
        f"UA {statistics.median(row['UA'] for row in rows):.1%}, IRA lost {lost['IRA']:.1f} points, "
        f"CRA lost {lost['CRA']:.1f}, {statistics.median(row['cpu_seconds'] for row in rows):.0f} CPU s"
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.diffusion: {error}")
