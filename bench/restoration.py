"""Forgetting a degradation: every method on the photo restorer.  `python -m bench.restoration --json`

Each method starts from the same model and sets, is stopped by the same rule (half of the search images come
out no better than they went in; "all steps" runs its whole schedule instead) and is measured on the held-out
crops: PSNR and SSIM of every degradation, and how many images of the forgotten one are still restored, or
are harmed, by 1 dB (`tasks.families.restoration`).

    instances         the forget images themselves, beside unseen images of the same degradation
    --relearn         how fast each model comes back to it when it is trained on (`bench.relearning`)
    --retrained DIR   a model folder trained without the target, the reference for all of them:
                      python -m data.train_restorer --without haze --out .slugline/without-haze

The methods of the paper (arXiv 2409.00685) are a re-implementation of its idea; its tables are not available.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from bench.provenance import provenance
from bench.relearning import curve
from bench.variants import picked_from
from contracts.canonical import from_plain
from contracts.errors import InputError, SluglineError
from contracts.values import Method
from data.layout import concept_id
from data.restoration_sets import CLEAN
from tasks.families.restoration import DECIBELS, Images, judge
from tasks.house import repository
from tasks.plan import read_labels
from tasks.progress import bar
from unlearning import methods
from unlearning.determinism import deterministic
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_request import RestorationRequest

MODEL = "data/models-restoration/restorer"
COMMON: Mapping[str, Any] = {"towers": ["net"], "forget_target": 0.5, "micro_batch": 16}
TRAINED = "instance-unlearning"
# Relabelling that goes on until single images no longer differ: the house's method.
WHOLE: Mapping[str, Any] = {
    "forget": "identity",
    "distance": "log-mse",
    "protect": "answers",
    "weight": 4.0,
    "learning_rates": [1e-3],
    "steps": 50,
    "schedule": "full",
    "visible": 1.0,
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "slug": {"name": "slug"},
    "slug-preconditioned": {"name": "slug-preconditioned", "options": {"layers": 6}},
    "ascent": {"name": TRAINED, "options": {"protect": "none"}},
    "ascent, adversarial": {"name": TRAINED, "options": {"weight": 4.0}},
    "ascent, random of that norm": {"name": TRAINED, "options": {"protect": "random", "weight": 4.0}},
    "ascent, adversarial, importance": {"name": TRAINED, "options": {"weight": 4.0, "importance": 1.0}},
    "ascent, retained": {"name": TRAINED, "options": {"protect": "retained", "weight": 4.0}},
    "relabel": {"name": TRAINED, "options": {"forget": "identity", "protect": "none"}},
    "relabel, retained": {"name": TRAINED, "options": {"forget": "identity", "protect": "retained"}},
    "relabel, answers, all steps": {"name": TRAINED, "forget_target": 0.05, "options": WHOLE},
    "relabel, answers, all steps, L1": {
        "name": TRAINED,
        "forget_target": 0.05,
        "options": {**WHOLE, "distance": "l1"},
    },
}


def main() -> None:
    """Measure every method and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="haze", help="degradation to forget")
    parser.add_argument("--methods", default="", help="labels, separated by semicolons; all if not given")
    parser.add_argument("--retrained", type=Path, metavar="DIR")
    parser.add_argument("--relearn", action="store_true", help="about a minute more for each method")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    picked = picked_from(options.methods, VARIANTS)
    repo, rows = repository(), []
    for row in compare(
        repo / "data",
        repo / MODEL,
        options.target,
        picked,
        options.retrained,
        options.threads,
        options.relearn,
    ):
        print(line(row), file=sys.stderr)
        rows.append(row)
    if options.json:
        print(json.dumps({"provenance": provenance("bench.restoration"), "rows": rows}, indent=2))


def compare(
    data: Path,
    folder: Path,
    target: str,
    picked: list[str],
    retrained: Path | None,
    threads: int,
    relearn: bool = False,
) -> Iterator[dict[str, Any]]:
    """A row for the original, the retrained model if there is one, and every method.

    Args:
        data: holds sets/restoration-* and labels-restoration.
        folder: of the model.
        target: name of the degradation to forget.
        picked: labels of `VARIANTS`.
        retrained: folder of a model that never saw the target.
        threads: torch's.
        relearn: whether to train every model on.

    Raises:
        InputError: there is no such degradation.
        SluglineError: a set or a model is unusable.
    """
    labels = read_labels(data / "labels-restoration").set_index("id")["name"]
    wanted = concept_id(target)
    if wanted not in labels.index:
        raise InputError(f"there is no degradation {target!r}; there are {', '.join(labels)}")
    sets = {
        name: Images.read(data / f"sets/restoration-{name}")
        for name in ("pool", "retain", "search", "holdout")
    }
    ids = tuple(labels.index)
    forget = sets["pool"].where(sets["pool"].rows["object"] == wanted)
    request = RestorationRequest(
        ids,
        (ids.index(wanted),),
        forget.pairs(ids),
        sets["retain"].where(sets["retain"].rows["object"] != wanted).pairs(ids),
        sets["search"].pairs(ids),
    )
    held = {
        str(name): sets["holdout"].where(sets["holdout"].rows["object"] == label)
        for label, name in labels.items()
    }
    held = {name: images for name, images in held.items() if len(images.rows)}

    def again(model: RestorationModel) -> dict[str, Any]:
        sets = {"kept": request.retain, "forgotten": request.forget} if relearn else {}
        return {f"relearned_on_{name}": curve(model, pairs, held[target]) for name, pairs in sets.items()}

    with deterministic(0, threads):
        yield {"method": "original", **measured(RestorationModel.load(folder), target, held, forget)}
        if retrained is not None:
            never = RestorationModel.load(retrained)
            yield {"method": "retrained", **measured(never, target, held, forget), **again(never)}
        for label in picked:
            model, method = RestorationModel.load(folder), from_plain(Method, {**COMMON, **VARIANTS[label]})
            began = process_time()
            with bar(label) as tell:
                outcome = methods.unlearn(model, request, method, tell)
            spent = {"cpu_seconds": round(process_time() - began, 1), "tensors": len(outcome.edits)}
            found = measured(model, target, held, forget)
            found |= again(model)
            yield {"method": label, "reached_target": outcome.reached_target, **spent, **found}


def measured(
    model: RestorationModel, target: str, held: Mapping[str, Images], forget: Images
) -> dict[str, Any]:
    """PSNR (dB) and SSIM by degradation; of the forgotten one gain over the input, and shares of images."""
    found = {name: judge(model, images) for name, images in held.items()}
    gain = found[target].gain
    return {
        "target": target,
        "n": len(gain),
        "psnr": {name: round(float(np.mean(own.psnr)), 2) for name, own in found.items()},
        "ssim": {name: round(float(np.mean(own.ssim)), 3) for name, own in found.items()},
        "gain": round(float(np.mean(gain)), 2),
        "gain_deviation": round(float(np.std(gain)), 2),
        "restored": round(float(np.mean(gain >= DECIBELS)), 3),
        "harmed": round(float(np.mean(gain <= -DECIBELS)), 3),
        "instances_gain": round(float(np.mean(judge(model, forget).gain)), 2),
    }


def line(row: Mapping[str, Any]) -> str:
    """A row for people."""
    kept = "  ".join(
        f"{name} {psnr:.2f}" for name, psnr in row["psnr"].items() if name not in (row["target"], CLEAN)
    )
    relearned = "".join(
        f"  {name}: " + ", ".join(f"{own['gain']:+.2f} dB after {steps}" for steps, own in row[name].items())
        for name in row
        if name.startswith("relearned")
    )
    return (
        f"{row['method']:<32} {row['target']} {row['psnr'][row['target']]:.2f} dB "
        f"(gain {row['gain']:+.2f} +- {row['gain_deviation']:.2f}, restored {row['restored']:.0%}, "
        f"harmed {row['harmed']:.0%})  {kept}  clean {row['psnr'][CLEAN]:.2f}  "
        f"{row.get('tensors', 0)} tensors, {row.get('cpu_seconds', 0)} CPU s" + relearned
    )


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.restoration: {error}")
