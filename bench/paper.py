"""How much faster than the paper's procedure?  `python -m bench.paper --json`

The same request, sets and model for all of them, in one process, jobs and pieces of the procedure in turns:

    paper       `bench.procedure`: gradients of the whole model, ten full evaluations of every front layer
                of both towers, the model copied for each.  With --evaluations N only N of them are timed
                and the others taken at their mean.  `with_losses` adds what the released code computes
                at every step beside the rates that decide.  Its search is too long to be repeated: it is run
                once, in shares, one a round, and a round counts it at the mean of its own share.
    slug        the same work, done our way: the whole front of both towers, the same stop.  Both take
                the same gradients first; `ratio_search` leaves those out and compares what follows
    others      slug-preconditioned, and what slugline.yaml treats the model with

Seconds are CPU seconds of all threads.  Everything runs once before anything is timed; in each of the
--repeats rounds all of them are timed, gradients too, and both sides are medians over the rounds.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class Parts:
    """Seconds of one of our methods, or of the paper's procedure, in one round.

    profile: gradients and front; the same work in the paper's procedure and in SLUG.
    edit: of the paper's procedure the whole search, each of its evaluations at the mean of the round's.
    """

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
        repeats: rounds, at most one for each evaluation of the paper's procedure; each times at least one.
        tell: hears of progress.
    """
    meter, ours = Meter(), _ours(house)
    slug = ours["slug"]
    front, trials = _warmed_up(model, inputs, ours)
    planned = len(front) * slug.search_steps
    rounds = min(repeats, planned)
    wanted = min(max(evaluations or planned, rounds), planned)
    paper: list[Parts] = []
    losses: list[float] = []
    taken: dict[str, list[Parts]] = {label: [] for label in ours}
    for number in range(1, rounds + 1):
        # A share of the evaluations in every round: the machine is shared, and its slow minutes with it.
        done = wanted * (number - 1) // rounds
        share = wanted * number // rounds - done
        profiled = meter.seconds(lambda: _profile(model, inputs, slug))
        paper.append(Parts(profiled, meter.seconds(_next(trials, share)) / share * planned))
        losses.append(meter.seconds(lambda: procedure.losses(model, model.net, inputs, slug)))
        tell("evaluations of the paper's procedure", done + share, wanted)
        for label, method in ours.items():
            with restored(model.parameters, model.parameters):
                taken[label].append(_parts(model, inputs, method, meter))
        tell("rounds", number, rounds)
    seconds, searched = _median(paper), median(parts.edit for parts in paper)
    with_losses = seconds + planned * median(losses)
    return {
        "paper": {
            "seconds": seconds,
            "with_losses": with_losses,
            "profile_seconds": median(parts.profile for parts in paper),
            "seconds_per_evaluation": searched / planned,
            "front_layers": len(front),
            "evaluations": planned,
            "evaluations_timed": wanted,
            "extrapolated": wanted < planned,
            "searches": "one, shared out over the rounds",
            "rounds": [asdict(parts) for parts in paper],
        },
        "ours": {
            label: {
                "seconds": _median(own),
                "profile_seconds": median(parts.profile for parts in own),
                "ratio": seconds / _median(own),
                "ratio_search": searched / median(parts.edit for parts in own),
                "ratio_with_losses": with_losses / _median(own),
                "method": asdict(ours[label]),
                "rounds": [asdict(parts) for parts in own],
            }
            for label, own in taken.items()
        },
    }


def _ours(house: Method) -> Mapping[str, Method]:
    """What is held against the paper; `slug` has the paper's stop and both towers."""
    known = table(("slug",))
    picked = {"slug": known["slug"], PRECONDITIONED: known[PRECONDITIONED]}
    same_batches = {label: replace(m, micro_batch=house.micro_batch) for label, m in picked.items()}
    return {**same_batches, f"{house.name} (house default)": house}


def _warmed_up(
    model: ClipModel, inputs: UnlearnInputs, ours: Mapping[str, Method]
) -> tuple[list[str], Iterator[procedure.Trial]]:
    """Everything once, so that no first time is timed; the paper's front, and its search, not yet begun."""
    slug = ours["slug"]
    front, forget = _profile(model, inputs, slug)
    procedure.evaluate(model, model.net, inputs, slug)
    procedure.losses(model, model.net, inputs, slug)
    for method in ours.values():
        with restored(model.parameters, model.parameters):
            methods.unlearn(model, inputs, method)
    return front, procedure.search(model, inputs, slug, forget, front)


def _profile(model: ClipModel, inputs: UnlearnInputs, slug: Method) -> tuple[list[str], procedure.Gradients]:
    """The paper's front, and the forget gradients that its search steps along."""
    forget, retain = procedure.gradients(model, inputs, slug)
    return procedure.front(model, forget, retain), forget


def _median(rounds: Sequence[Parts]) -> float:
    return median(parts.profile + parts.edit for parts in rounds)


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
