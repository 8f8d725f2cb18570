"""The same requests on models of several training seeds: mean and range over the seeds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bench.requests import KINDS
from bench.rows import Row
from bench.summary import COLUMNS, shown, summarise

FIGURES = ("fa1", "fa5", "ta1_drop", "ta5_drop", "neighbours_drop", "worst_neighbour")

Summary = dict[str, Any]


def over_seeds(rows: Sequence[Row], models: Sequence[str]) -> dict[str, dict[str, Summary]]:
    """By kind of request and contender, what the models have in common and where they differ.

    Only requests that a contender was measured on with every model count, so that a run that is not
    finished compares like with like; a contender without one is absent.

    Args:
        rows: of all models.
        models: their labels.

    Returns:
        n: requests; passed: of n, and every figure: mean, low and high over the models, and by model.
    """
    found: dict[str, dict[str, Summary]] = {}
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        for label in dict.fromkeys(row["label"] for row in own):
            by_model = {
                model: {r["request"]: r for r in own if (r["label"], r["model"]) == (label, model)}
                for model in models
            }
            common = set.intersection(*(set(each) for each in by_model.values()))
            if common:
                summaries = {
                    model: summarise([row for name, row in each.items() if name in common])
                    for model, each in by_model.items()
                }
                found.setdefault(kind, {})[label] = _spread(summaries, len(common))
    return found


def _spread(summaries: Mapping[str, Summary], n: int) -> Summary:
    spread: Summary = {
        "n": n,
        "passed": _range({model: own["verdicts"]["passed"] for model, own in summaries.items()}),
    }
    for name in FIGURES:
        values = {m: own["figures"][name] for m, own in summaries.items() if name in own["figures"]}
        if len(values) == len(summaries):
            spread[name] = _range(values)
    return spread


def _range(values: Mapping[str, float]) -> Summary:
    numbers = list(values.values())
    return {
        "mean": round(float(np.mean(numbers)), 6),
        "low": min(numbers),
        "high": max(numbers),
        "by_model": dict(values),
    }


def section(spread: Mapping[str, Summary], models: Sequence[str]) -> Iterator[str]:
    """Markdown: one row per contender, mean and range over the models."""
    yield f"Over training seeds ({', '.join(models)}): mean of the models' medians, lowest to highest."
    yield ""
    names = [name for name in FIGURES if any(name in own for own in spread.values())]
    yield "| method | n | passed | " + " | ".join(COLUMNS[name].title for name in names) + " |"
    yield "|---|---|---|" + "---|" * len(names)
    for label, own in spread.items():
        passed = own["passed"]
        cells = [f"{passed['mean']:.1f} ({passed['low']} to {passed['high']})"]
        cells += [_cell(name, own.get(name)) for name in names]
        yield f"| `{label}` | {own['n']} | " + " | ".join(cells) + " |"


def _cell(name: str, spread: Summary | None) -> str:
    if spread is None:
        return "–"
    mean, low, high = (shown(name, spread[each]) for each in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
