"""UA, IRA and CRA on UnlearnCanvas, for those who have its checkpoints.

    python -m bench.unlearn_canvas --canvas FOLDER --model EDITED --target "Van Gogh" --axis style
        --before ORIGINAL            the original beside it, from the same noise: judged once for all targets
        --objects 4 --styles 5       the first of the lists, and the target, to look at a part
        --device cuda                the protocol is 5,000 pictures of 100 steps, for each model

FOLDER is what `data.unlearn_canvas` reads; EDITED and ORIGINAL are model folders, as `slugline models import`
makes them of pipelines.  What UA, IRA and CRA are, and over which pictures each is taken, stands in
`bench.canvas`.  A broken model and a blind classifier have a perfect UA too: read it beside IRA, and beside
the original.  Bounds are one-sided 95 %; rates count pictures as independent, though those of a seed begin
from the same noise, and drops resample prompts.  None is about other seeds.

Outcomes are appended to OUT/rows.jsonl as they come, and the same command continues where it ended; pictures
are not kept.  The benchmark's own scripts draw in half precision and judge what JPEG leaves of a picture.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.canvas import AXES, Canvas, figures, identity, judged, part, place
from bench.meter import Meter
from bench.provenance import provenance
from bench.rows import Rows
from contracts.errors import SluglineError
from contracts.values import Axis, Drop, Rate
from data.unlearn_canvas import ARCHITECTURE, GUIDANCE, SEEDS, STEPS, classes
from tasks.progress import bar
from unlearning.determinism import deterministic

HEADS = ("figure", "pictures", "before", "after", "surely at least", "points lost", "surely at most")


def main() -> None:
    """Draw and judge what is missing; print a table, or JSON."""
    options = _arguments()
    names = {axis: classes(options.canvas, axis) for axis in AXES}
    target = place(names[options.axis], options.axis, options.target)
    counts: dict[Axis, int | None] = {"object": options.objects, "style": options.styles}
    canvas = Canvas(
        folder=options.canvas,
        cells=part(names, options.axis, target, counts, options.seeds),
        steps=options.steps,
        guidance=options.guidance,
        architecture=options.architecture,
        device=Meter(options.device).device,
        micro_batch=options.micro_batch,
    )
    folders = {"before": options.before, "after": options.model}
    # Of both before the first is drawn: hours may lie between.
    models = {state: identity(folder) for state, folder in folders.items() if folder is not None}
    options.out.mkdir(parents=True, exist_ok=True)
    rows, found = Rows(options.out / "rows.jsonl"), {}
    with deterministic(0, options.threads):
        for state, model in models.items():
            with bar(state) as tell:
                found[state] = judged(folders[state], model, canvas, rows, tell)
    rates, drops = figures(found, options.axis, target)
    if options.json:
        told = {
            "provenance": provenance("bench.unlearn_canvas"),
            "axis": options.axis,
            "target": names[options.axis][target],
            "models": models,
            "canvas": canvas.digest,
            "rates": {
                state: {name: asdict(one) for name, one in own.items()} for state, own in rates.items()
            },
            "drops": {name: asdict(one) for name, one in drops.items()},
        }
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(lines(rates, drops)))


def lines(rates: Mapping[str, Mapping[str, Rate]], drops: Mapping[str, Drop]) -> Iterator[str]:
    """A markdown table."""
    yield f"| {' | '.join(HEADS)} |"
    yield "|" + "---|" * len(HEADS)
    for name, after in rates["after"].items():
        before = f"{rates['before'][name].estimate:.1%}" if "before" in rates else ""
        drop = drops.get(name)
        lost = ("", "") if drop is None else (f"{100 * drop.estimate:.1f}", f"{100 * drop.upper95:.1f}")
        cells = (name, str(after.n), before, f"{after.estimate:.1%}", f"{after.lower95:.1%}", *lost)
        yield f"| {' | '.join(cells)} |"


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--canvas", type=Path, required=True, help="folder of lists and classifiers")
    parser.add_argument("--model", type=Path, required=True, help="folder of the edited model")
    parser.add_argument("--before", type=Path, help="folder of the original")
    parser.add_argument("--target", required=True, help="what was forgotten, as its list names it")
    parser.add_argument("--axis", choices=AXES, required=True, help="of the target")
    parser.add_argument("--objects", type=_positive, help="so many instead of all")
    parser.add_argument("--styles", type=_positive, help="so many instead of all")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of every prompt")
    parser.add_argument("--steps", type=_positive, default=STEPS, help="of the sampler")
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="scale")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="timm's name, of other classifiers")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--micro-batch", type=_positive, default=8, help="pictures at a time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/unlearn-canvas"))
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.unlearn_canvas: {error}")
    except KeyboardInterrupt:
        print("bench.unlearn_canvas: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
