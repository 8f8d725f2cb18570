"""Every method on the same requests, gates and audits.  `python -m bench.compare --json`

Requests are drawn by seed, never picked; each goes the way of `bench.survey`: real sets, real selection,
real gates, nothing registered.  Rows are appended to OUT/rows.jsonl as they come, and the same command
continues where it ended; summary.json, table.md and the figures are written anew from all rows asked for.

    --contenders FILE                    those of a YAML file instead, label: {name: ..., options: ...}
    --forget-at K --forget-target P      another stop for all: at most P of each concept's search items may
                                         have it among the first K (where P is below one item, none)
    --family-sizes 9-15                  of the families drawn those with so many concepts
    --audits probe,retrieval,relearn:4   audits to run, `:N` on the first N requests of each kind only
    --model real-clip                    the second reference model, or a model folder; its own --out
    --seeds DIR DIR                      the headline rows on models of other training seeds too, as
                                         `python -m data.train --seed N --out DIR` (of real-clip
                                         data.real_towers) writes them; all by the rules of --model
    --retrained DIR                      models trained without the forget set, in DIR/<model>/<request> or,
                                         for several requests at once, DIR/<model>/union (`bench.gold`);
                                         --list prints the requests' names and targets
    --gold N                             write what a union of the first N requests leaves out into the
                                         folder of --retrained, print how it is trained, and do nothing else
    --part 1/2                           every second request: several processes may share one OUT
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.case import Settings
from bench.compare_plots import plots
from bench.compare_table import page
from bench.contenders import HEADLINES, Stop, read_table, resolved, table
from bench.gold import prepare_union
from bench.models import add_model_options, base_model, model_folder
from bench.provenance import provenance
from bench.requests import FAMILY_SIZES, Kind
from bench.rows import Row
from bench.seeds import over_seeds
from bench.summary import aggregate
from bench.worklist import Asked, Work, drawn, measure, parse_audits, parse_part, parse_sizes, worklist
from contracts.errors import SluglineError
from contracts.values import Axis
from tasks.house import Rules, choose, repository
from unlearning import methods

DEFAULT_AUDITS = "probe,kernel,retrieval,relearn,quantise"


def main() -> None:
    """Compare; write rows, summary, table and figures; print the table, or JSON."""
    options = _arguments()
    settings = Settings(options.relearn_steps, options.relearn_rate, options.relearn_batch)
    repo = repository()
    base = base_model(repo, options.model, options.rules)
    seeds = {folder.absolute().name: model_folder(folder) for folder in options.seeds}
    picked = tuple(label.strip() for label in options.methods.split(",") if label.strip())
    asked = Asked(
        models={base.label: base.folder, **seeds},
        table=read_table(options.contenders) if options.contenders else table(methods.names("clip")),
        picked=picked,
        headlines=picked or HEADLINES,
        seeds=tuple(seeds),
        stop=Stop(options.forget_at, options.forget_target),
        audits=parse_audits(options.audits, settings),
        settings=settings,
        retrained=options.retrained,
        threads=options.threads,
    )
    counts: dict[Kind, int] = {
        "single": options.singles,
        "family": options.families,
        "style": options.styles,
    }
    houses = base.houses(repo)
    with drawn(repo, houses, counts, options.seed, options.family_sizes) as (world, requests):
        if options.list:
            print(json.dumps({request.name: request.targets for request in requests}, indent=2))
            return
        if options.gold is not None:
            print(prepare_union(options.retrained, base, requests, options.gold))
            return
        works = worklist(asked, requests, houses)
        found = measure(asked, world, works, options.out, options.part, options.limit_seconds)
    own = [row for row in found if row["model"] == base.label]
    result = {
        "provenance": provenance("bench.compare"),
        "models": list(asked.models),
        "asked": {"seed": options.seed, "threads": options.threads, "settings": asdict(settings)},
        "requests": {
            kind: {"asked": count, "drawn": sum(request.kind == kind for request in requests)}
            for kind, count in counts.items()
        },
        "family_sizes": [options.family_sizes[0], options.family_sizes[-1]],
        "commits": sorted({row["commit"] for row in found}),
        "rows": len(found),
        "wanted": len(works),
        "house": _house_labels(works, houses),
        "kinds": aggregate(own),
        "seeds": over_seeds(found, list(asked.models)) if seeds else {},
    }
    write(options.out, result, own)
    print(json.dumps(result, indent=2) if options.json else page(result))


def write(out: Path, result: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Everything but the rows: summary, table, and figures of the model's own rows."""
    (out / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "table.md").write_text(page(result))
    for name, drawing in plots(rows).items():
        (out / name).write_bytes(drawing)


def _house_labels(works: Sequence[Work], houses: Mapping[Axis, Rules]) -> dict[Kind, str]:
    """Which contender is treated as slugline.yaml says, by kind of request; absent if none is."""
    own = {axis: resolved(choose(house, {}).method) for axis, house in houses.items()}
    return {
        work.request.kind: work.contender.label
        for work in works
        if work.contender.resolved == own[work.request.axis]
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    for name, count in (("--singles", 20), ("--families", 10), ("--styles", 10), ("--seed", 0)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--methods", default="", help="labels, separated by commas; all if not given")
    parser.add_argument("--contenders", type=Path, metavar="FILE")
    parser.add_argument("--forget-at", type=int, metavar="K")
    parser.add_argument("--forget-target", type=float, metavar="P")
    parser.add_argument("--family-sizes", type=parse_sizes, default=FAMILY_SIZES, metavar="I-N")
    parser.add_argument("--audits", default=DEFAULT_AUDITS, help="see above, or none")
    parser.add_argument("--seeds", type=Path, nargs="+", default=[], metavar="DIR")
    parser.add_argument("--retrained", type=Path, metavar="DIR")
    parser.add_argument("--gold", type=int, metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("bench/results/compare"))
    parser.add_argument("--limit-seconds", type=float, help="begin no row after that")
    parser.add_argument("--part", type=parse_part, default=(1, 1), metavar="I/N")
    parser.add_argument("--list", action="store_true", help="print the requests and do nothing")
    parser.add_argument("--json", action="store_true")
    told = Settings()
    parser.add_argument("--relearn-steps", type=int, default=told.relearn_steps)
    parser.add_argument("--relearn-rate", type=float, default=told.relearn_rate)
    parser.add_argument("--relearn-batch", type=int, default=told.relearn_batch)
    options = parser.parse_args()
    if options.gold is not None and options.retrained is None:
        parser.error("--gold needs --retrained DIR")
    return options


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.compare: {error}")
