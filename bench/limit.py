"""How close profile and search come to the limit of the machine.  `python -m bench.limit --json`

The limit is work that no method can avoid: one forward and backward pass over the forget set, one
over the retain set, and one forward pass over the search split, in this process and on these threads:
images by open_clip's own code, texts without their padding, as the product encodes them (`bench.passes`).

    --models reference,ViT-B-32,ViT-L-14    (the default) trained models on their own sets: reference,
        real-clip; architectures of open_clip at full size with random weights on small random sets
        (`bench.work.FULL_SIZE`); or a model folder
    --device cuda --precision bf16          larger sets, utilisation, device memory

    ratio                 the default method's profile and search / limit
    ratio_full_front      SLUG, its whole Pareto front in both towers / limit
    ratio_preconditioned  slug-preconditioned in the text tower / limit
    ratio_cached          the same, what it needs of the retain set read from its file / (forget + search)
    ratio_default_cached  the default method / (forget + search): it takes no gradient of the retain set
    seconds               medians over the rounds: CPU seconds, on a GPU wall-clock seconds
    rounds                seconds of every round; a ratio is the median over rounds of that round's ratio
    memory                growth of resident memory while profiling, next to what is allowed.  That includes
        what glibc's allocator keeps of freed blocks; with MALLOC_MMAP_THRESHOLD_=65536 in the environment
        all but small ones are given back, and it is what the work needs
    peak_memory_mib       highest resident size of the process at this model
    utilisation           operations, their rate, its share of a large matrix product's and of the peak; the
        host's preprocessing beside them
    hotspots              the operations that take most of each job's time; on a GPU how busy it is

A model that fails has an `error` instead, and what is done is printed if the run is interrupted.
"""

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.footprint import profiling_memory
from bench.hotspots import hotspots
from bench.meter import Meter, utilisation
from bench.models import EMOJI, base_model
from bench.passes import forget_pass, preprocess_pass, retain_pass, search_pass
from bench.provenance import provenance
from bench.work import FULL_SIZE, REAL, Setting, known_retain, random_work, real_work
from contracts.errors import SluglineError
from contracts.values import Method
from tasks.house import choose, repository, rules
from tasks.progress import Tell, bar
from unlearning import methods
from unlearning.attempts import restored
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.request import UnlearnInputs

REFERENCE = "reference"
DEFAULT_MODELS = (REFERENCE, *FULL_SIZE["cpu"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a line per model, or JSON."""
    options = _arguments(arguments)
    meter = Meter(options.device, options.precision)
    changed = {size: getattr(options, size) for size in ("forget", "retain", "search", "classes")}
    changed = {size: n for size, n in changed.items() if n is not None}
    found: dict[str, Any] = {}
    interrupted = False
    try:
        for name in options.models:
            setting = FULL_SIZE[options.device].get(name, REAL)
            setting = replace(setting, sizes=replace(setting.sizes, **changed))
            if options.repeats is not None:
                setting = replace(setting, rounds=options.repeats)
            found[name] = _row(name, setting, meter, options)
            print(_line(name, found[name]), file=sys.stderr if options.json else sys.stdout)
    except KeyboardInterrupt:
        interrupted = True
    if options.json:
        machine = {
            **provenance("bench.limit"),
            "device": meter.name or "cpu",
            "precision": meter.precision,
            "clock": meter.clock,
            "threads": options.threads,
            "malloc_mmap_threshold": os.environ.get("MALLOC_MMAP_THRESHOLD_"),
            "load": os.getloadavg(),
        }
        ratio = found.get(REFERENCE, {}).get("ratio")
        print(json.dumps({"ratio": ratio, "models": found, "interrupted": interrupted, **machine}, indent=2))
    if interrupted or any("error" in row for row in found.values()):
        sys.exit(1)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", "--model", type=lambda names: names.split(","), default=DEFAULT_MODELS)
    for size in ("forget", "retain", "search", "classes"):
        parser.add_argument(f"--{size}", type=int, help="items, instead of the model's own number")
    parser.add_argument("--device", choices=tuple(FULL_SIZE), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--utilisation", action="store_true", help="and hotspots, also on a CPU; jobs run twice more"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="rounds, instead of the model's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(arguments)


def _row(name: str, setting: Setting, meter: Meter, options: argparse.Namespace) -> dict[str, Any]:
    """`limit`, or what went wrong: one model's failure must not lose the others' figures."""
    try:
        with deterministic(options.seed, options.threads):
            return limit(name, setting, meter, options.seed, options.utilisation or meter.device == "cuda")
    except (SluglineError, RuntimeError, MemoryError) as error:  # torch raises RuntimeError out of memory
        return {"error": {"class": type(error).__name__, "message": str(error).partition("\n")[0]}}


def _line(name: str, row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"{name}: {row['error']['class']}: {row['error']['message']}"
    return (
        f"{name}: {row['ratio']:.2f} (default), {row['ratio_full_front']:.2f} (whole front), "
        f"{row['ratio_preconditioned']:.2f} (preconditioned) x {row['seconds']['limit']:.2f} s; "
        f"retain side known: {row['ratio_default_cached']:.2f} (default), "
        f"{row['ratio_cached']:.2f} (preconditioned) x forget and search"
    )


def limit(name: str, setting: Setting, meter: Meter, seed: int, used: bool) -> dict[str, Any]:
    """Ratios and their parts for one model.

    Args:
        name: see the module's text.
        setting: sets and how often.
        meter: where and how precisely.
        seed: of the request and of random weights.
        used: whether the machine's utilisation is measured, too.
    """
    model, inputs, default = work(name, setting, seed, meter.device)
    asked = {"default": default, **_own(setting, default.micro_batch)}
    with bar(name) as tell, tempfile.TemporaryDirectory() as folder:
        # First, because it also warms up what is timed after.  It leaves the highest resident size at
        # the present one, so that `peak_memory_mib` is this model's and not an earlier one's.
        tell("memory", 0, 2)
        memory = {kind: profiling_memory(model, inputs, method) for kind, method in asked.items()}
        jobs = _jobs(model, inputs, asked, Path(folder), tell)
        rounds = measure_rounds(model, jobs, setting.rounds, meter, tell)
        row = {
            **ratios(rounds),
            "sizes": {**asdict(setting.sizes), "classes": len(inputs.class_ids)},
            "methods": {kind: asdict(method) for kind, method in asked.items()},
            "memory": memory,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if meter.device == "cuda":
            row["device_memory_mib"] = _device_memory(model, jobs, meter)
        if used:
            jobs["preprocess"] = lambda: preprocess_pass(model, inputs, default, tell)
            taken = {**row["seconds"], "preprocess": meter.seconds(jobs["preprocess"])}
            undone = {job: _undone(model, run) for job, run in jobs.items()}
            row["utilisation"] = utilisation(meter, undone, taken)
            row["hotspots"] = {job: hotspots(meter, run, taken[job]) for job, run in undone.items()}
    return row


def work(
    name: str, setting: Setting, seed: int, device: str = "cpu"
) -> tuple[ClipModel, UnlearnInputs, Method]:
    """The model, a request, and the method that the house treats it with."""
    repo = repository()
    if name in FULL_SIZE["cpu"]:
        model, inputs = random_work(name, setting.sizes, seed, device)
        method = choose(rules(repo, EMOJI, "object"), {}).method
        return model, inputs, replace(method, micro_batch=setting.micro_batch or method.micro_batch)
    base = base_model(repo, EMOJI if name == REFERENCE else name)
    model, inputs = real_work(repo, base, setting.sizes, seed, device)
    return model, inputs, choose(base.houses(repo)["object"], {}).method


def _own(setting: Setting, micro_batch: int) -> dict[str, Method]:
    """What is measured beside the default: the paper's method, and one that uses known retain statistics."""
    batch = Method().retain_batch if setting.retain_batch is None else setting.retain_batch
    slug = Method(micro_batch=micro_batch, retain_batch=batch)
    return {"full_front": slug, "preconditioned": replace(slug, name="slug-preconditioned", towers=("text",))}


def _jobs(
    model: ClipModel, inputs: UnlearnInputs, asked: Mapping[str, Method], folder: Path, tell: Tell
) -> dict[str, Callable[[], Any]]:
    """The limit's passes, the methods asked for, and the preconditioned one once more as a later request."""
    default = asked["default"]

    def unlearn(job: str, method: Method, given: Callable[[], UnlearnInputs]) -> Callable[[], Any]:
        return lambda: methods.unlearn(
            model, given(), method, lambda what, done, total: tell(f"{job}, {what}", done, total)
        )

    later = known_retain(model, inputs, asked["preconditioned"], folder / "retain.safetensors")
    return {
        "forget": lambda: forget_pass(model, inputs, default, tell),
        "retain": lambda: retain_pass(model, inputs, default, tell),
        "search": lambda: search_pass(model, inputs, default, tell),
        **{kind: unlearn(kind, method, lambda: inputs) for kind, method in asked.items()},
        "cached": unlearn("cached", asked["preconditioned"], later),
    }


def measure_rounds(
    model: ClipModel, jobs: Mapping[str, Callable[[], Any]], rounds: int, meter: Meter, tell: Tell
) -> list[dict[str, float]]:
    """Seconds of every job, `rounds` times; the model is as before after each.

    The machine is shared: jobs take turns, so that a slow minute does not fall on one side of a ratio
    alone, and every other round runs them backwards, so that a slow drift does not either.
    """
    found = []
    for number in range(rounds):
        order = list(jobs)[:: -1 if number % 2 else 1]
        taken = {}
        for done, job in enumerate(order):
            tell(f"round {number + 1} of {rounds}", done, len(order))
            with restored(model.parameters, model.parameters):
                taken[job] = meter.seconds(jobs[job])
        found.append({job: taken[job] for job in jobs})
    return found


def ratios(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The head of a row: ratios, medians of seconds, and the rounds that they come from."""
    rounds = [{**taken, "limit": taken["forget"] + taken["retain"] + taken["search"]} for taken in rounds]
    return {
        "ratio": median(taken["default"] / taken["limit"] for taken in rounds),
        "ratio_full_front": median(taken["full_front"] / taken["limit"] for taken in rounds),
        "ratio_preconditioned": median(taken["preconditioned"] / taken["limit"] for taken in rounds),
        "ratio_cached": median(t["cached"] / (t["forget"] + t["search"]) for t in rounds),
        "ratio_default_cached": median(t["default"] / (t["forget"] + t["search"]) for t in rounds),
        "seconds": {job: median(taken[job] for taken in rounds) for job in rounds[0]},
        "rounds": rounds,
    }


def _device_memory(model: ClipModel, jobs: Mapping[str, Callable[[], Any]], meter: Meter) -> dict[str, float]:
    """What the model takes on the device, and by how much each job raises that at most."""
    found = {"model": sum(p.nbytes for p in model.parameters.values()) / 2**20}
    for job, run in jobs.items():
        with restored(model.parameters, model.parameters):
            found[job] = meter.device_growth_mib(run)
    return found


def _undone(model: ClipModel, run: Callable[[], Any]) -> Callable[[], None]:
    """`run` on the model as it is, which it is again afterwards."""

    def once() -> None:
        with restored(model.parameters, model.parameters):
            run()

    return once


if __name__ == "__main__":
    # A time limit ends the run like Ctrl-C does: what is done is printed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.limit: {error}")
