"""Forgetting an object or a hand: methods on the text-to-image model.  `python -m bench.diffusion --json`

Each method starts from the same model and sets, is stopped by the same search split, and is measured on
the prompts of the verdict (`tasks.families.diffusion`) in the words of UnlearnCanvas:

    UA   share of the pictures of what was forgotten that an independent judge does not ascribe to it
    IRA  share of the pictures of the others of its axis that are recognised
    CRA  share of the same pictures that are recognised on the other axis
    KID  from those to the drawings

"slug, denoising loss" goes along the gradient of the concept's own denoising loss, without neutral captions.
The trained baselines take many steps in all weights of the text tower, until the search split no longer shows
the concept.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from bench.provenance import provenance
from bench.variants import picked_from
from contracts.canonical import from_plain
from contracts.errors import InputError, SluglineError
from contracts.values import Axis, Method, Plan
from tasks.families import diffusion
from tasks.house import repository
from tasks.plan import read_labels
from tasks.progress import bar
from unlearning import methods
from unlearning.determinism import deterministic
from unlearning.families.diffusion import DiffusionModel

MODEL = "data/models/diffusion"
COMMON: Mapping[str, Any] = {"towers": ["text"], "micro_batch": 16}
# Out of the judge's first so many classes in the search, of the few hands and of the many objects.
FORGET_AT: Mapping[Axis, int] = {"object": 5, "style": 2}
DENOISING = "slug, denoising loss"
BUDGET = {"learning_rates": [2e-4], "steps": 24, "weight_decay": 0.0}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "slug": {"name": "slug"},
    "slug-preconditioned": {"name": "slug-preconditioned"},
    "slug, unet": {"name": "slug", "towers": ["unet"]},
    "slug-preconditioned, unet": {"name": "slug-preconditioned", "towers": ["unet"]},
    DENOISING: {"name": "slug"},
    "gradient ascent": {"name": "gradient-ascent", "options": BUDGET},
    "ascent-finetuning": {"name": "ascent-finetuning", "options": BUDGET},
}


def main() -> None:
    """Measure every method and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="bullseye", help="name of what to forget")
    parser.add_argument("--axis", choices=("object", "style"), default="object")
    parser.add_argument("--methods", default="", help="labels, separated by semicolons; all if not given")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    picked = picked_from(options.methods, VARIANTS)
    repo, rows = repository(), []
    for row in compare(repo / "data", repo / MODEL, options.axis, options.target, picked, options.threads):
        print(line(row), file=sys.stderr)
        rows.append(row)
    if options.json:
        print(json.dumps({"provenance": provenance("bench.diffusion"), "rows": rows}, indent=2))


def compare(
    data: Path, model: Path, axis: Axis, target: str, picked: list[str], threads: int
) -> Iterator[dict[str, Any]]:
    """A row for every method.

    Args:
        data: holds sets/diffusion-* and labels-diffusion.
        model: its folder.
        axis: of the target.
        target: name of what to forget.
        picked: labels of `VARIANTS`.
        threads: torch's.

    Raises:
        InputError: there is no such object or hand.
        SluglineError: a set or a model is unusable.
    """
    labels = read_labels(data / "labels-diffusion")
    found = labels[(labels["axis"] == axis) & labels["seen"] & (labels["name"] == target)]
    if found.empty:
        raise InputError(f"there is no {axis} {target!r} that the model draws")
    plan = _plan(axis, str(found["id"].iloc[0]))
    with TemporaryDirectory() as scratch, deterministic(0, threads):
        folder = Path(scratch)
        for role, path in _paths(data, axis).items():
            (folder / role).symlink_to(path.absolute())
        for label in picked:
            edited = DiffusionModel.load(model)
            request = diffusion.request(plan, folder, edited)
            if label == DENOISING:
                request = replace(request, neutral=None)
            method = from_plain(Method, {**COMMON, "forget_at": FORGET_AT[axis], **VARIANTS[label]})
            began = process_time()
            with bar(label) as tell:
                outcome = methods.unlearn(edited, request, method, tell)
            spent = {"cpu_seconds": round(process_time() - began, 1), "tensors": len(outcome.edits)}
            original = DiffusionModel.load(model)
            measured = diffusion.measured(plan, folder, original, edited, method.towers).figures
            yield {
                "method": label,
                "target": target,
                "reached_target": outcome.reached_target,
                **spent,
                **{
                    name: {
                        state: round(measured.rates[f"{group}.recognised.{state}"].estimate, 3)
                        for state in ("before", "after")
                    }
                    for name, group in (("forget", "forget"), ("IRA", "retain"), ("CRA", "cross"))
                },
                "UA": round(1 - measured.rates["forget.recognised.after"].estimate, 3),
                "n": measured.rates["forget.recognised.after"].n,
                "KID": {
                    state: round(-getattr(measured.levels["retain.likeness"], state), 4)
                    for state in ("before", "after")
                },
            }


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    ira, cra, kid = (
        f"{row[name]['before']:.3f} -> {row[name]['after']:.3f}" for name in ("IRA", "CRA", "KID")
    )
    return (
        f"{row['method']:<28} {row['target']}: UA {row['UA']:.1%} of {row['n']}  IRA {ira}  CRA {cra}  "
        f"KID {kid}  {row['tensors']} tensors, {row['cpu_seconds']} CPU s"
    )


def _paths(data: Path, axis: Axis) -> dict[str, Path]:
    sets = {role: data / f"sets/diffusion-{role}" for role in ("retain", "search", "holdout")}
    control = data / f"sets/diffusion-{'control' if axis == 'object' else 'style-control'}"
    return {
        **sets,
        "forget": data / "sets/diffusion-pool",
        "control": control,
        "labels": data / "labels-diffusion",
    }


def _plan(axis: Axis, target: str) -> Plan:
    """As much of a plan as the family reads."""
    return Plan(
        request_id="bench",
        model="bench",
        base_version="",
        base_weights_sha256="",
        axis=axis,
        targets=(target,),
        neighbours=(),
        sets=(),
        labels_sha256="",
        method=Method(),
        gates_sha256="",
        seed=0,
        threads=1,
        device="cpu",
        software={},
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.diffusion: {error}")
