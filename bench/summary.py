"""From rows to one figure per contender, kind of request and column."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from bench.requests import KINDS
from bench.rows import Row

Reader = Callable[[Row], float | None]
VERDICTS = ("passed", "failed", "insufficient evidence")
# A method that hardly ever erases keeps everything at no cost; it does not compete for these columns.
ERASES = 0.5
# Nor does one of which the gates decide less than this share of the requests: the rest says nothing of it.
DECIDED = 0.5


def at(*path: str) -> Reader:
    """Reads a figure out of a row; None where the row has none."""

    def read(row: Row) -> float | None:
        value: Any = row
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    return read


def _percentile(share: float, values: Sequence[float]) -> float:
    return float(np.percentile(values, share))


_median, _p90, _worst = partial(_percentile, 50), partial(_percentile, 90), partial(_percentile, 100)


@dataclass(frozen=True)
class Column:
    """One figure of the table.

    title: over the column.
    read: what is summarised.
    over: how, over the rows that have it.
    best: which value is the better one; an AUC is best where nothing is found, at one half.
    shown: "percent" of a rate, "points" of a drop, a "number", or a "share" with two decimals.
    """

    title: str
    read: Reader
    over: Callable[[Sequence[float]], float] = _median
    best: Literal["low", "half"] = "low"
    shown: Literal["percent", "points", "number", "share"] = "percent"


_FA1, _FA5 = at("rates", "forget.fa1", "after", "estimate"), at("rates", "forget.fa5", "after", "estimate")
_DROP = at("drops", "retain.ta1", "estimate")
_NEAR = at("drops", "neighbours.ta1", "estimate")
_WORST_NEAR = at("drops", "neighbours.worst.ta1", "estimate")


COLUMNS: Mapping[str, Column] = {
    "fa1": Column("FA@1", _FA1),
    "fa1_worst": Column("worst", _FA1, _worst),
    "fa5": Column("FA@5", _FA5),
    "ta1_drop": Column("TA@1 lost", _DROP, shown="points"),
    "ta1_drop_p90": Column("p90", _DROP, _p90, shown="points"),
    "ta5_drop": Column("TA@5 lost", at("drops", "retain.ta5", "estimate"), shown="points"),
    "neighbours_drop": Column("neighbours lost", _NEAR, shown="points"),
    "worst_neighbour": Column("worst one lost", _WORST_NEAR, shown="points"),
    "cross_drop": Column("other axis lost", at("drops", "cross.ta1", "estimate"), shown="points"),
    "probe": Column("probe AUC", at("audits", "probe", "after", "auc"), best="half", shown="share"),
    "caught": Column("probe finds", at("audits", "probe", "after", "caught", "estimate")),
    "kernel": Column("kernel AUC", at("audits", "kernel", "after", "auc"), best="half", shown="share"),
    "kernel_caught": Column("kernel finds", at("audits", "kernel", "after", "caught", "estimate")),
    "map": Column("retrieval mAP", at("audits", "retrieval", "after", "map")),
    "relearned": Column("FA@1 relearned", at("audits", "relearn", "after", "fa1", "estimate")),
    "int8": Column("FA@1 int8", at("audits", "quantise", "after", "int8", "fa1", "estimate")),
    "fp16": Column("FA@1 fp16", at("audits", "quantise", "after", "fp16", "fa1", "estimate")),
    "kl": Column("KL to retrained", at("audits", "distance", "after", "kl"), shown="share"),
    "l1": Column("L1 to retrained", at("audits", "distance", "after", "l1"), shown="share"),
    "cpu_seconds": Column("CPU s", at("cost", "cpu_seconds"), shown="number"),
    "peak_mib": Column("peak MiB", at("cost", "peak_growth_mib"), shown="number"),
}

# The same figures of the unedited model.
UNEDITED: Mapping[str, Reader] = {
    "fa1": at("rates", "forget.fa1", "before", "estimate"),
    "fa5": at("rates", "forget.fa5", "before", "estimate"),
    "ta1": at("rates", "retain.ta1", "before", "estimate"),
    "control_fa1": at("rates", "control.fa1", "before", "estimate"),
    "probe": at("audits", "probe", "before", "auc"),
    "probe_chance95": at("audits", "probe", "before", "auc_chance95"),
    "caught": at("audits", "probe", "before", "caught", "estimate"),
    "kernel": at("audits", "kernel", "before", "auc"),
    "kernel_caught": at("audits", "kernel", "before", "caught", "estimate"),
    "map": at("audits", "retrieval", "before", "map"),
    "map_chance": at("audits", "retrieval", "before", "chance"),
    "relearned": at("audits", "relearn", "before", "fa1", "estimate"),
    "int8": at("audits", "quantise", "before", "int8", "fa1", "estimate"),
    "kl": at("audits", "distance", "before", "kl"),
    "l1": at("audits", "distance", "before", "l1"),
}

Summary = dict[str, Any]


def aggregate(rows: Iterable[Row]) -> dict[str, Summary]:
    """Per kind of request: the unedited model, and every contender in the order of its first row."""
    rows = list(rows)
    found: dict[str, Summary] = {}
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        if not own:
            continue
        labels = list(dict.fromkeys(row["label"] for row in own))
        found[kind] = {
            "requests": len({row["request"] for row in own}),
            "models": sorted({row["model"] for row in own}),
            "unedited": _values({name: (read, _median) for name, read in UNEDITED.items()}, own),
            "contenders": {label: summarise([r for r in own if r["label"] == label]) for label in labels},
        }
    return found


def summarise(rows: Sequence[Row]) -> Summary:
    """Counts and figures of one contender; a column without any figure is absent."""
    done = [row for row in rows if not row["error"]]
    verdicts = Counter(row["verdict"] for row in done)
    errors = Counter(row["error"]["class"] for row in rows if row["error"])
    return {
        "n": len(rows),
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS},
        "errors": dict(errors),
        "erased": sum(row["erased"] for row in done),
        "reached_target": sum(bool(row.get("reached_target")) for row in done),
        "stop": _stop(rows[0]["method"]),
        "towers": rows[0]["method"]["towers"] if rows[0]["method"] else [],
        "figures": _values({name: (column.read, column.over) for name, column in COLUMNS.items()}, done),
        "retrained": dict(Counter(row["retrained"] for row in done if row.get("retrained"))),
        "counts": _values({name: (column.read, _count) for name, column in COLUMNS.items()}, done),
    }


def _stop(method: Mapping[str, Any] | None) -> str:
    """Where the search may end, as tables print it; nothing for the retrained model."""
    if method is None:
        return ""
    share = f", {method['forget_target']:.0%}" if method["forget_target"] else ""
    return f"top {method['forget_at']}{share}"


def _count(values: Sequence[float]) -> float:
    return len(values)


def _values(
    asked: Mapping[str, tuple[Reader, Callable[[Sequence[float]], float]]], rows: Iterable[Row]
) -> dict[str, float]:
    rows = list(rows)
    found = {}
    for name, (read, over) in asked.items():
        values = [value for row in rows if (value := read(row)) is not None]
        if values:
            found[name] = round(over(values), 6)
    return found


def shown(column: str, value: float | None) -> str:
    """A figure as tables print it; a dash where there is none."""
    if value is None:
        return "–"
    match COLUMNS[column].shown:
        case "percent":
            return f"{100 * value:.1f} %"
        case "points":
            return f"{100 * value:.1f}"
        case "share":
            return f"{value:.2f}"
        case _:
            return f"{value:.1f}"


def competitors(contenders: Mapping[str, Summary]) -> list[str]:
    """Who can be best: methods that pass the erasure gates for at least `ERASES` of what can be decided.

    That has to be at least `DECIDED` of their requests, so that no mark rests on the one that could be.
    An error counts as decided; the retrained model is a reference and no method.
    """
    found = []
    for label, own in contenders.items():
        decided = own["n"] - own["verdicts"]["insufficient evidence"]
        enough = decided >= DECIDED * own["n"]
        if own["towers"] and enough and own["erased"] >= max(1, ERASES * decided):
            found.append(label)
    return found


def best(contenders: Mapping[str, Summary], column: str) -> list[str]:
    """The competitors with the best value of a column, as it is shown; none where nobody competes."""
    values = {
        label: _badness(column, contenders[label]["figures"][column])
        for label in competitors(contenders)
        if column in contenders[label]["figures"]
    }
    return [label for label, value in values.items() if value == min(values.values())]


def beaten(contenders: Mapping[str, Summary], house: str) -> dict[str, list[str]]:
    """Column -> who is better in it than the contender `house`, best first."""
    own = contenders[house]["figures"]
    found: dict[str, list[str]] = {}
    for column in own:
        others = {
            label: _badness(column, contenders[label]["figures"][column])
            for label in competitors(contenders)
            if column in contenders[label]["figures"]
        }
        better = [label for label, value in others.items() if value < _badness(column, own[column])]
        if better:
            found[column] = sorted(better, key=lambda label: others[label])
    return found


def _badness(column: str, value: float) -> float:
    """To three digits, so that noise nobody can see in the table makes no winner."""
    return round(abs(value - 0.5) if COLUMNS[column].best == "half" else value, 3)
