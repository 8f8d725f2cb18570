"""How few forget images are enough?  `python -m bench.few --counts 1,2,3 --json`

Single concepts drawn by seed, as `bench.compare` draws them.  Of each forget set the first n drawings (in an
order drawn by seed) are kept; the gates judge on the holdout hands as ever, and a probe looks for the concept
in the image features.  A concept with fewer drawings than a count does not stand in that count's row.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from bench.case import Case, Settings
from bench.contenders import Contender, Stop, contenders, fitting, table
from bench.models import Base, add_model_options, base_model
from bench.provenance import provenance
from bench.rows import Row
from bench.summary import COLUMNS, shown, summarise
from bench.trial import trial
from bench.worklist import drawn
from contracts.errors import InputError, SluglineError
from tasks.house import choose, repository
from unlearning import methods
from unlearning.determinism import deterministic
from unlearning.request import UnlearnInputs

METHODS = "erase-linear vision,per-tower,slug-preconditioned text,uce text"
FIGURES = ("fa1", "fa1_worst", "fa5", "ta1_drop", "caught", "cpu_seconds")


def main() -> None:
    """Measure every count and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--counts", default="1,2,3", help="forget images, ascending")
    parser.add_argument("--methods", default=METHODS, help="labels of bench.contenders, separated by commas")
    for name, count in (("--singles", 8), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    base = base_model(repository(), options.model, options.rules)
    counts = sorted({int(n) for n in options.counts.split(",")})
    known = fitting(table(methods.names("clip")), choose(base.houses(repository())["object"], {}).method)
    asked = contenders(known, options.methods.split(","), "object", {"object": Stop()})
    rows = list(few(base, asked, counts, options.singles, options.seed, options.threads))
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for label, n in sorted({(row["label"], row["images"]) for row in rows}):
        own = [row for row in rows if (row["label"], row["images"]) == (label, n)]
        found.setdefault(label, {})[n] = summarise(own)
    if options.json:
        told = {"provenance": provenance("bench.few"), "model": base.label, "methods": found, "rows": rows}
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(lines(found)))


def few(
    base: Base, asked: Sequence[Contender], counts: Sequence[int], singles: int, seed: int, threads: int
) -> Iterator[Row]:
    """One row per request, contender and count that the request has enough forget images for."""
    repo = repository()
    houses = base.houses(repo)
    with drawn(repo, houses, {"single": singles}, seed) as (world, requests):
        model, work = base.load(), base.load()
        for request in tqdm(requests, unit="request"):
            with deterministic(0, threads):
                case = Case.build(
                    repo,
                    world.folders["object"],
                    houses["object"],
                    (base.label, model),
                    request,
                    asked[0],
                    None,
                    Settings(),
                    threads,
                )
            for n in (n for n in counts if n <= len(case.inputs.forget_images)):
                fewer = replace(case, inputs=first(case.inputs, n, seed))
                for contender in asked:
                    yield {**trial(fewer, contender, work, {"probe": {}}), "images": n}


def first(inputs: UnlearnInputs, n: int, seed: int) -> UnlearnInputs:
    """The inputs with `n` of their forget images.

    Raises:
        InputError: there are fewer.
    """
    there = len(inputs.forget_images)
    if not 0 < n <= there:
        raise InputError(f"{n} forget images were asked for, the request has {there}")
    rows = np.sort(np.random.default_rng(seed).permutation(there)[:n])
    return replace(
        inputs,
        forget_images=inputs.forget_images[rows],
        forget_captions=tuple(inputs.forget_captions[i] for i in rows),
        forget_labels=inputs.forget_labels[rows],
    )


def lines(found: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[str]:
    """A markdown table."""
    heads = ["method", "images", "n", "passed", *(COLUMNS[name].title for name in FIGURES)]
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for label, by_count in found.items():
        for n, own in by_count.items():
            cells = [shown(name, own["figures"].get(name)) for name in FIGURES]
            yield f"| `{label}` | {n} | {own['n']} | {own['verdicts']['passed']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.few: {error}")
