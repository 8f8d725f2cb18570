"""Which layer?  One method in every layer it can edit, each by itself.  `python -m bench.layers --json`

For every request (drawn by seed, as `bench.compare` does) and every such matrix of both towers the change is
searched in that layer alone, judged by the gates on the holdout hands and audited: what it costs to find,
what it costs in accuracy, what a probe still finds, what fine-tuning on the retain set brings back.
Medians are over requests of one kind: single concepts and families are told apart.

    --method slug-preconditioned   the step, in every matrix
    --method erase-linear          the erasure, in every layer it can be folded into
    rule                           what the method itself would search of a tower; see its docstring
    --retain-known                 seconds as of a later request on the same model: what the method uses of
                                   the retain set is measured once for all layers, and does not count
    --part 1/2                     every second request: several processes may share one OUT

Rows are appended to OUT/rows.jsonl; the same command continues where it ended.  summary.json, table.md and
layers.svg are written anew from all rows asked for.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.case import Settings
from bench.compare_plots import KINDS
from bench.compare_table import TITLES
from bench.contenders import COMMON, TEXT, VISION, Stop
from bench.models import add_model_options, base_model
from bench.provenance import provenance
from bench.requests import Kind
from bench.rows import Row
from bench.summary import COLUMNS, aggregate, shown
from bench.worklist import Asked, drawn, measure, parse_audits, parse_part, worklist
from contracts.canonical import from_plain
from contracts.errors import SluglineError
from contracts.values import Method
from report.plots import theme
from tasks.house import repository
from unlearning.families.clip import ClipModel, tower_of
from unlearning.linear_layers import linear_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _matrices(model: ClipModel) -> list[str]:
    return [candidate.name for candidate in model.candidates() if len(candidate.shape) > 1]


def _foldable(model: ClipModel) -> list[str]:
    return [layer.weight for layer in linear_layers(model)]


# Methods with an option `layer`, and the weights it may name.
LAYERS_OF: Mapping[str, Callable[[ClipModel], list[str]]] = {
    "slug-preconditioned": _matrices,
    "erase-linear": _foldable,
}
AUDITS = "probe,relearn"
RULE = {"text": "the rule, text", "vision": "the rule, vision"}
FIGURES = ("fa1", "fa5", "ta1_drop", "neighbours_drop", "caught", "relearned", "cpu_seconds")


def layer_table(model: ClipModel, name: str) -> dict[str, Method]:
    """Label -> method: the rule in either tower, then every layer that the method can edit by itself."""
    of_tower = {"text": TEXT, "vision": VISION}
    found = {RULE[tower]: {"name": name, **told} for tower, told in of_tower.items()}
    for layer in LAYERS_OF[name](model):
        found[layer] = {"name": name, **of_tower[tower_of(layer)], "options": {"layer": layer}}
    return {label: from_plain(Method, {**COMMON, **told}) for label, told in found.items()}


def main() -> None:
    """Measure every layer, write rows, summary, table and figure; print the table, or JSON."""
    options = _arguments()
    repo, settings = repository(), Settings()
    base = base_model(repo, options.model, options.rules)
    model = base.load()
    asked = Asked(
        models={base.label: base.folder},
        table=layer_table(model, options.method),
        picked=(),
        headlines=(),
        seeds=(),
        stop=Stop(),
        audits=parse_audits(options.audits, settings),
        settings=settings,
        retrained=None,
        threads=options.threads,
        retain_known=options.retain_known,
    )
    houses = base.houses(repo)
    counts: dict[Kind, int] = {"single": options.singles, "family": options.families}
    with drawn(repo, houses, counts, options.seed) as (world, requests):
        works = worklist(asked, requests, houses)
        found = measure(asked, world, works, options.out, options.part, options.limit_seconds)
    there = {row["label"] for row in found}
    labels = [label for label in by_depth(model, asked.table) if label in there]
    result = {
        "provenance": provenance("bench.layers"),
        "method": options.method,
        "model": base.label,
        "retain_known": all(row.get("retain_known", False) for row in found if not row["error"]),
        "kinds": aggregate(sorted(found, key=lambda row: labels.index(row["label"]))),
    }
    (options.out / "summary.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "table.md").write_text(page(result))
    with theme.drawing():
        (options.out / "layers.svg").write_bytes(theme.svg(drawing(found, labels)))
    print(json.dumps(result, indent=2) if options.json else page(result))


def by_depth(model: ClipModel, table: Mapping[str, Method]) -> list[str]:
    """The rules, then layers as their tower runs."""

    def place(label: str) -> tuple[bool, str, int]:
        if label in RULE.values():
            return False, label, 0
        tower = tower_of(label)
        return True, tower, model.staged(tower).stage_of(label)

    return sorted(table, key=place)


def page(result: Mapping[str, Any]) -> str:
    """The figures as a markdown page: one table per kind of request."""
    lines = [
        f"# `{result['method']}` in every layer it can edit",
        "",
        f"    {result['provenance']['command']}",
        "",
        f"{result['model']}; medians over the requests of a kind.  A text layer has the image features as "
        "they were: what a probe finds there is what it found before."
        + (" CPU seconds with what is used of the retain set known." if result["retain_known"] else ""),
    ]
    for kind, found in result["kinds"].items():
        lines += [
            "",
            f"## {TITLES[kind]}, {found['requests']} requests",
            "",
            "| layer | n | reached | passed | " + " | ".join(COLUMNS[name].title for name in FIGURES) + " |",
            "|---|---|---|---|" + "---|" * len(FIGURES),
        ]
        for label, own in found["contenders"].items():
            cells = [shown(name, own["figures"].get(name)) for name in FIGURES]
            counts = f"{own['n']} | {own['reached_target']} | {own['verdicts']['passed']}"
            lines.append(f"| `{label}` | {counts} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def drawing(rows: Sequence[Row], labels: Sequence[str]) -> "Figure":
    """A panel per figure; a layer per line, in the order of the towers; a faint mark per request.

    Every kind of request has a mark and a colour of its own, strong at its median.
    """
    figures = ("ta1_drop", "caught", "relearned", "cpu_seconds")
    figure = theme.new_figure(0.8 + 0.17 * len(labels))
    panels = figure.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, figures, strict=True):
        column = COLUMNS[name]
        scale = 1 if column.shown == "number" else 100
        for kind, (mark, colour, title) in KINDS.items():
            medians = []
            for line, label in enumerate(labels):
                own = [r for r in rows if (r["label"], r["kind"]) == (label, kind) and not r["error"]]
                values = [scale * v for row in own if (v := column.read(row)) is not None]
                if values:
                    axes.plot(values, [line] * len(values), mark, color=theme.FAINT, ms=3)
                    medians.append((column.over(values), line))
            if medians:
                axes.plot(*zip(*medians, strict=True), mark, color=colour, ms=4, label=title)
        theme.panel_title(axes, column.title)
    panels[0].set_yticks(range(len(labels)), labels, fontsize=6)
    panels[0].invert_yaxis()
    handles, titles = panels[0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower left", ncols=len(KINDS), fontsize=7)
    return figure


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    for name, count in (("--singles", 4), ("--families", 2), ("--seed", 0), ("--threads", 1)):
        parser.add_argument(name, type=int, default=count)
    parser.add_argument("--method", choices=tuple(LAYERS_OF), default="slug-preconditioned")
    parser.add_argument("--audits", default=AUDITS, help="as in bench.compare, or none")
    parser.add_argument("--out", type=Path, default=Path("bench/results/layers"))
    parser.add_argument("--retain-known", action="store_true")
    parser.add_argument("--limit-seconds", type=float, help="begin no row after that")
    parser.add_argument("--part", type=parse_part, default=(1, 1), metavar="I/N")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except SluglineError as error:
        sys.exit(f"bench.layers: {error}")
