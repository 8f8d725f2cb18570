"""One run as one HTML page that loads nothing, and the two files a run leaves."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from contracts.values import RunSeconds
from contracts.whole_files import write_private
from report import metrics, pictures, words
from report.plots.profile import scored_together
from report.plots.search import JOINT, is_kept
from report.record import RunRecord, to_json
from report.score_words import score_words

_STEPS = ("pull", "profile", "unlearn", "measure", "gate", "publish")


def render(record: RunRecord) -> str:
    """The page as text.  Everything that came from outside the template is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _filters(record)
    rows = list(metrics.rows(record.measurements))
    return environment.get_template("report.html.j2").render(
        record=record,
        plan=record.plan,
        verdict=record.verdict,
        headline=words.headline(record.verdict, record.names).partition(": ")[2],
        claim=words.claim(record.plan, record.verdict, record.names),
        shown=words.shown(record.verdict, record.edits),
        not_proved=words.not_proved(record.verdict),
        scores_mean=score_words(record.plan.method.name),
        production=words.production(record.plan, record.version, record.promoted),
        gates=[g for g in record.verdict.gates if g.kind != "self-check"],
        self_checks=[g for g in record.verdict.gates if g.kind == "self-check"],
        rows=[r for r in rows if not r.metric.concept],
        neighbours=[r for r in rows if r.metric.concept],
        levels=metrics.level_rows(record.measurements),
        score=metrics.score_of_trials(record.measurements),
        meanings=metrics.meanings(record.measurements),
        edited={(concept, e.layer) for e in record.edits for concept in e.concepts},
        kept=lambda trial: is_kept(trial, record.edits),
        seconds=_seconds(record.seconds),
        pictures=pictures,
    )


def write_report(record: RunRecord, folder: Path) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into `folder`, each whole or not at all, mode 0600.

    Returns:
        The paths of the HTML and of the JSON file.
    """
    page, data = folder / "report.html", folder / "report.json"
    write_private(data, to_json(record))
    write_private(page, render(record).encode())
    return page, data


def _filters(record: RunRecord) -> dict[str, Callable[..., Any]]:
    return {
        "name": lambda label: "all together" if label == JOINT else record.name(label),
        "scored_together": scored_together,
        "shell": shlex.quote,
        "percent": metrics.percent,
        "points": metrics.points,
        "figure": metrics.figure,
        "in_unit": lambda value, measure: metrics.in_unit(measure, value),
        "metric_words": lambda metric: metrics.metric_words(metric, record.names),
        "limits": words.limits,
        "title": words.TITLES.__getitem__,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }


def _seconds(seconds: RunSeconds) -> list[tuple[str, float, float]]:
    """(step, seconds, percent of the longest step), for the bars."""
    taken = [(step, float(getattr(seconds, step))) for step in _STEPS]
    longest = max(value for _, value in taken) or 1.0
    return [(step, value, 100 * value / longest) for step, value in taken]
