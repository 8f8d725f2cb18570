"""How close profile and search come to the limit of the machine.  `python -m bench.limit --json`

The limit is work that no method can avoid: one forward and backward pass over the forget set, one
over the retain set, and one forward pass over the search split, all by open_clip's own code, in
this process and on these threads.  Times are CPU seconds.

    ratio              the default method's profile and search / limit
    ratio_full_front   SLUG, its whole Pareto front in both towers / limit
    ratio_cached       the default method, retain statistics read from their file / (forget + search)
    paper              with --paper: the paper's procedure (`bench.paper`) on the work of ratio_full_front
    memory             growth of resident memory while profiling, next to what is allowed
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from time import process_time
from typing import Any

import torch

from bench import paper
from bench.footprint import profiling_memory
from bench.provenance import provenance
from bench.work import Sizes, known_retain, random_work, reference_work
from contracts.values import Method
from tasks.house import choose, repository, rules
from unlearning import methods
from unlearning.attempts import restored
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.inplace import requiring_grad
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import UnlearnInputs
from unlearning.zero_shot import fill_templates

# At least 100 forget, 1,000 retain and 500 search items on the reference model; full-size models on
# a CPU core or two get few.
SIZES = {
    "reference": Sizes(forget=100, retain=1000, search=500, classes=421),
    "ViT-B-32": Sizes(forget=16, retain=32, search=32, classes=50),
    "ViT-L-14": Sizes(forget=4, retain=8, search=8, classes=25),
}
# Items at a time at full size, where a retain batch of 256 does not fit into memory in one piece.
FULL_SIZE_MICRO_BATCH = 16
# SLUG's released code takes the contrastive loss over batches of 16: what fits in one piece.
FULL_SIZE_PAPER_BATCH = 16


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["reference"])
    for size in ("forget", "retain", "search", "classes"):
        parser.add_argument(
            f"--{size}", type=int, help="instead of what SIZES says (classes: full size only)"
        )
    parser.add_argument(
        "--paper",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="time the paper's procedure too; with N only N of its\nevaluations, the others at their mean",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="the median of these counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    asked = {size: getattr(options, size) for size in ("forget", "retain", "search", "classes")}
    found = {}
    for name in options.models:
        sizes = replace(SIZES[name], **{size: n for size, n in asked.items() if n is not None})
        with deterministic(options.seed, options.threads):
            found[name] = limit(name, sizes, options.repeats, options.seed, options.paper)
    if options.json:
        machine = {**provenance("bench.limit"), "threads": options.threads, "load": os.getloadavg()}
        ratio = found.get("reference", {}).get("ratio")
        print(json.dumps({"ratio": ratio, "models": found, **machine}, indent=2))
        return
    for name, row in found.items():
        print(
            f"{name}: {row['ratio']:.2f} (default), {row['ratio_full_front']:.2f} (whole front) x "
            f"{row['seconds']['limit']:.2f} s"
        )


def limit(name: str, sizes: Sizes, repeats: int, seed: int, paper_evaluations: int | None) -> dict[str, Any]:
    """Ratios and their parts for one model.

    Every part is timed `repeats` times, in turns, and the median taken: the machine is shared, and
    a slow minute must not fall on one side of the ratio alone.

    Args:
        name: of `SIZES`.
        sizes: of the sets.
        repeats: how often everything is timed, except the paper's procedure.
        seed: of the request and of random weights.
        paper_evaluations: None leaves the paper's procedure out, 0 runs all of it, N times N evaluations.
    """
    default, slug = _methods(name)
    if name == "reference":
        model, inputs = reference_work(Path.cwd(), sizes, seed)
    else:
        model, inputs = random_work(name, sizes, seed)
    # First, because it also warms up what is timed after.
    memory = {
        "default": profiling_memory(model, inputs, default),
        "full_front": profiling_memory(model, inputs, slug),
    }
    with tempfile.TemporaryDirectory() as folder:
        seconds = _timed(model, inputs, default, slug, Path(folder), repeats)
    bound = seconds["forget"] + seconds["retain"] + seconds["search"]
    row = {
        "ratio": seconds["default"] / bound,
        "ratio_full_front": seconds["full_front"] / bound,
        "ratio_cached": None,
        "sizes": {**asdict(sizes), "classes": len(inputs.class_ids)},
        "methods": {"default": asdict(default), "full_front": asdict(slug)},
        "seconds": {**seconds, "limit": bound},
        "memory": memory,
    }
    if "cached" in seconds:
        row["ratio_cached"] = seconds["cached"] / (seconds["forget"] + seconds["search"])
    if paper_evaluations is not None:
        row["paper"] = _paper(model, inputs, slug, paper_evaluations, seconds)
    return {**row, "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _methods(name: str) -> tuple[Method, Method]:
    """The default method, and SLUG with the whole front of both towers."""
    default = choose(rules(repository(), "emoji-clip", "object"), {}).method
    if name == "reference":
        return default, Method(micro_batch=default.micro_batch)
    default = replace(default, micro_batch=FULL_SIZE_MICRO_BATCH, forget_at=5)
    return default, Method(micro_batch=FULL_SIZE_MICRO_BATCH, retain_batch=FULL_SIZE_PAPER_BATCH)


def _timed(
    model: ClipModel, inputs: UnlearnInputs, default: Method, slug: Method, folder: Path, repeats: int
) -> dict[str, float]:
    """CPU seconds of every job; the model is as before after each."""
    jobs: dict[str, Callable[[], Any]] = {
        "forget": lambda: _forget_pass(model, inputs, default),
        "retain": lambda: _retain_pass(model, inputs, default),
        "search": lambda: _search_pass(model, inputs, default),
        "default": lambda: methods.unlearn(model, inputs, default),
        "full_front": lambda: methods.unlearn(model, inputs, slug),
    }
    later = known_retain(model, inputs, default, folder / "retain.safetensors")
    if later is not None:
        jobs["cached"] = lambda: methods.unlearn(model, later(), default)
    taken: dict[str, list[float]] = {job: [] for job in jobs}
    for _ in range(repeats):
        for job, run in jobs.items():
            with restored(model.parameters, model.parameters):
                taken[job].append(_cpu_seconds(run))
    return {job: statistics.median(times) for job, times in taken.items()}


def _paper(
    model: ClipModel, inputs: UnlearnInputs, slug: Method, evaluations: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """The paper's procedure: what it took, or would have taken at the mean of the first `evaluations`.

    `with_losses` adds what the released code computes at every step beside the rates that decide.
    """
    began = process_time()
    forget, retain = paper.gradients(model, inputs, slug)
    layers = paper.front(model, forget, retain)
    profiling = process_time() - began
    trials = paper.search(model, inputs, slug, forget, layers)
    planned = len(layers) * slug.search_steps
    began = process_time()
    timed = sum(1 for _ in islice(trials, evaluations or None))
    searching = (process_time() - began) * (planned / timed if evaluations else 1.0)
    total = profiling + searching
    logged = total + planned * _cpu_seconds(lambda: paper.losses(model, model.net, inputs, slug))
    return {
        "cpu_seconds": total,
        "ratio_to_ours": total / seconds["full_front"],
        "ratio_to_default": total / seconds["default"],
        "with_losses": {"cpu_seconds": logged, "ratio_to_ours": logged / seconds["full_front"]},
        "front_layers": len(layers),
        "evaluations": planned,
        "evaluations_timed": timed,
        "seconds": {"profile": profiling, "search": searching},
    }


def _cpu_seconds(run: Callable[[], Any]) -> float:
    began = process_time()
    run()
    return process_time() - began


def _forget_pass(model: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
    tokens = model.tokenize(inputs.forget_captions)
    pixels = torch.as_tensor(inputs.forget_images)
    layers = [c.name for c in model.candidates()]
    with requiring_grad(model.net, layers):
        for rows in torch.split(torch.arange(len(pixels)), method.micro_batch):
            image = model.image_features(model.preprocess(pixels[rows]))
            _backward(model, layers, forget_loss(image, model.text_features(tokens[rows])))


def _retain_pass(model: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
    tokens = model.tokenize(inputs.retain_captions)
    pixels = torch.as_tensor(inputs.retain_images)
    layers = [c.name for c in model.candidates()]
    with requiring_grad(model.net, layers):
        for rows in torch.split(torch.arange(len(pixels)), method.micro_batch):
            image = model.image_features(model.preprocess(pixels[rows]))
            loss = retain_loss(image, model.text_features(tokens[rows]), model.logit_scale)
            _backward(model, layers, loss)


def _backward(model: ClipModel, layers: list[str], loss: torch.Tensor) -> None:
    torch.autograd.grad(loss, [model.parameters[layer] for layer in layers], allow_unused=True)


@torch.no_grad()
def _search_pass(model: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
    pixels = torch.as_tensor(inputs.search_images)
    tokens = model.tokenize(fill_templates(inputs.class_names, inputs.templates))
    for rows in torch.split(torch.arange(len(pixels)), method.micro_batch):
        model.image_features(model.preprocess(pixels[rows]))
    for rows in torch.split(torch.arange(len(tokens)), method.micro_batch):
        model.text_features(tokens[rows])


if __name__ == "__main__":
    main()
