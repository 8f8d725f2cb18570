"""How much faster than the paper's procedure?  `python -m bench.paper --json`

The same request, sets and model for all of them, in one process, jobs and pieces of the procedure in turns:

    paper       `bench.procedure`: gradients of the whole model, ten full evaluations of every front layer
                of both towers, the model copied for each.  With --evaluations N only N of them are timed
                and the others taken at their mean.  `with_losses` adds what the released code computes
                at every step beside the rates that decide.
    slug        the same work, done our way: the whole front of both towers, the same stop.  Both take
                the same gradients first; `ratio_search` leaves those out and compares what follows
    others      slug-preconditioned, and what slugline.yaml treats the model with

Seconds are CPU seconds of all threads, medians over --repeats.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import median
from typing import Any

from bench import procedure
from bench.contenders import table
from bench.meter import Meter
from bench.models import add_model_options, base_model
from bench.provenance import provenance
from bench.work import REAL, real_work
from contracts.errors import SluglineError
from contracts.values import Method
from tasks.house import choose, repository
from tasks.progress import Tell, bar
from unlearning import methods
from unlearning.attempts import restored
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.request import Profile, UnlearnInputs

PRECONDITIONED = "slug-preconditioned text"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--evaluations", type=int, default=6, help="timed ones; 0: all, nothing extrapolated")
    parser.add_argument("--repeats", type=int, default=3)
    for size in ("forget", "retain", "search"):
        parser.add_argument(f"--{size}", type=int, default=getattr(REAL.sizes, size))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    repo = repository()
    base = base_model(repo, options.model, options.rules)
    sizes = replace(REAL.sizes, forget=options.forget, retain=options.retain, search=options.search)
    house = choose(base.houses(repo)["object"], {}).method
    with deterministic(options.seed, options.threads), bar("paper") as tell:
        model, inputs = real_work(repo, base, sizes, options.seed)
        found = compare(model, inputs, house, options.evaluations, options.repeats, tell)
    if options.json:
        about = {"model": base.label, "sizes": {**asdict(sizes), "classes": len(inputs.class_ids)}}
        machine = {**provenance("bench.paper"), "threads": options.threads, "load": os.getloadavg()}
        print(json.dumps({**about, **found, **machine}, indent=2))
        return
    paper = found["paper"]
    print(f"paper: {paper['seconds']:.1f} s ({paper['evaluations_timed']} of {paper['evaluations']} timed)")
    for label, own in found["ours"].items():
        print(
            f"{label}: {own['seconds']:.2f} s, {own['ratio']:.1f} x, search alone {own['ratio_search']:.1f} x"
        )


@dataclass
class Timed:
    """The paper's procedure while it is being timed, a few evaluations at a time.

    Attributes:
        front: layers of both towers.
        planned: evaluations, `search_steps` for each of them.
        profile: seconds of the gradients and the front.
        search: seconds of the evaluations done.
        done: how many those are.
    """

    front: list[str]
    planned: int
    profile: float
    search: float = 0.0
    done: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole procedure: evaluations that were not done count at the mean of the others."""
        return self.profile + self.search / self.done * self.planned


@dataclass(frozen=True)
class Parts:
    """Seconds of one of our methods.  Gradients are the same work in the paper's procedure."""

    profile: float
    edit: float


def compare(
    model: ClipModel, inputs: UnlearnInputs, house: Method, evaluations: int, repeats: int, tell: Tell
) -> dict[str, Any]:
    """The paper's seconds, those of our methods, and how many times longer the paper takes.

    Args:
        model: as it is before and after.
        inputs: the request.
        house: the product's default for this model; its micro-batch serves all.
        evaluations: of the paper's procedure to time, 0 for all.
        repeats: of our methods.
        tell: hears of progress.
    """
    meter, ours = Meter(), _ours(house)
    slug = ours["slug"]
    taken: dict[str, list[Parts]] = {label: [] for label in ours}
    timed, trials = _begun(model, inputs, slug, meter)
    wanted = min(evaluations or timed.planned, timed.planned)
    for number in range(1, repeats + 1):
        # A share of the evaluations in every round: the machine is shared, and its slow minutes with it.
        share = wanted * number // repeats - timed.done
        timed.search += meter.seconds(_next(trials, share))
        timed.done += share
        tell("evaluations of the paper's procedure", timed.done, wanted)
        for label, method in ours.items():
            with restored(model.parameters, model.parameters):
                taken[label].append(_parts(model, inputs, method, meter))
        tell("rounds", number, repeats)
    losses = meter.seconds(lambda: procedure.losses(model, model.net, inputs, slug))
    total = {label: median(parts.profile + parts.edit for parts in own) for label, own in taken.items()}
    searched = timed.seconds - timed.profile
    return {
        "paper": {
            "seconds": timed.seconds,
            "with_losses": timed.seconds + timed.planned * losses,
            "profile_seconds": timed.profile,
            "seconds_per_evaluation": timed.search / timed.done,
            "front_layers": len(timed.front),
            "evaluations": timed.planned,
            "evaluations_timed": timed.done,
            "extrapolated": timed.done < timed.planned,
        },
        "ours": {
            label: {
                "seconds": seconds,
                "profile_seconds": median(parts.profile for parts in taken[label]),
                "ratio": timed.seconds / seconds,
                "ratio_search": searched / median(parts.edit for parts in taken[label]),
                "ratio_with_losses": (timed.seconds + timed.planned * losses) / seconds,
                "method": asdict(ours[label]),
            }
            for label, seconds in total.items()
        },
    }


def _ours(house: Method) -> Mapping[str, Method]:
    """What is held against the paper; `slug` has the paper's stop and both towers."""
    known = table(("slug",))
    picked = {"slug": known["slug"], PRECONDITIONED: known[PRECONDITIONED]}
    same_batches = {label: replace(m, micro_batch=house.micro_batch) for label, m in picked.items()}
    return {**same_batches, f"{house.name} (house default)": house}


def _begun(model: ClipModel, inputs: UnlearnInputs, slug: Method, meter: Meter) -> tuple[Timed, Any]:
    found: list[tuple[list[str], dict[str, Any]]] = []

    def profile() -> None:
        forget, retain = procedure.gradients(model, inputs, slug)
        found.append((procedure.front(model, forget, retain), forget))

    seconds = meter.seconds(profile)
    ((front, forget),) = found
    timed = Timed(front, len(front) * slug.search_steps, seconds)
    return timed, procedure.search(model, inputs, slug, forget, front)


def _next(trials: Any, count: int) -> Callable[[], Any]:
    return lambda: list(islice(trials, count))


def _parts(model: ClipModel, inputs: UnlearnInputs, method: Method, meter: Meter) -> Parts:
    known: list[Profile] = []
    return Parts(
        profile=meter.seconds(lambda: known.append(methods.profile(model, inputs, method))),
        edit=meter.seconds(lambda: methods.edit(model, inputs, method, known[0])),
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.paper: {error}")
