"""The dotted metric names of a run, taken apart and put into words and units."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from contracts.metrics import CROSS, HEADLINES, HITS, LEVELS, SCORES, SHORT
from contracts.values import Drop, Level, Measurements, Rate

# As contracts.metrics documents them: <subject>.<measure>[.before|after][.drop|loss][.<field of the figure>].
_NAME = re.compile(
    r"(?P<subject>forget|earlier|retain|cross|neighbours\.worst|neighbours|control|neighbour\.(?P<concept>[cs]-[0-9a-f]{8}))"
    rf"\.(?:(?P<ranked>fa|ta|t2i)(?P<k>\d+)|(?P<own>{'|'.join((*HITS, *LEVELS))}))"
    r"(?:\.(?P<lost>drop|loss)|\.(?P<state>before|after))?(?:\.(?P<field>[a-z0-9]+))?"
)
_SUBJECTS = {
    "forget": "the forgotten concepts",
    "earlier": "what earlier requests erased, at worst",
    "retain": "the retained concepts",
    "neighbours": "the neighbours",
    "neighbours.worst": "the worst neighbour",
    "control": "the control concept",
    "cross": "what is kept on the other axis",
}
_FIELDS = {"lower95": "lower 95 % bound", "upper95": "upper 95 % bound", "n": "items", "clusters": "clusters"}
_ORDER = ("forget", "earlier", "retain", "cross", "neighbours", "control")


@dataclass(frozen=True)
class Metric:
    """One metric name, taken apart; `concept` is set for a single neighbour only, `k` for ranks only."""

    subject: str
    measure: str
    k: int
    concept: str = ""
    state: str = ""
    field: str = ""
    is_drop: bool = False

    @property
    def score(self) -> str:
        """ "FA@1", "TA@5", "text→image hit@1", "named" or "PSNR"."""
        if self.measure in SHORT:
            return SHORT[self.measure]
        return f"text→image hit@{self.k}" if self.measure == "t2i" else f"{self.measure.upper()}@{self.k}"

    def words(self, names: Mapping[str, str]) -> str:
        """What is measured, without state and field: "retained accuracy (TA@1)"."""
        if (self.subject, self.measure) == ("forget", "fa"):
            return f"forget accuracy ({self.score})"
        if (self.subject, self.measure) == ("retain", "ta"):
            return f"retained accuracy ({self.score})"
        whose = (
            f"neighbour {names.get(self.concept, self.concept)}" if self.concept else _SUBJECTS[self.subject]
        )
        if self.subject == "cross":
            whose = CROSS.get(self.measure, whose)
        if self.measure in HITS:
            return f"{self.score}, of {whose}"
        if self.measure in ("t2i", *LEVELS):
            return f"{self.score} of {whose}"
        return f"accuracy of {whose} ({self.score})"


def parse(name: str) -> Metric | None:
    """The parts of a metric name, or None for one outside the vocabulary."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    return Metric(
        subject=match["subject"].partition(".c-")[0].partition(".s-")[0],
        measure=match["ranked"] or match["own"],
        k=int(match["k"] or 0),
        concept=match["concept"] or "",
        state=match["state"] or "",
        field=match["field"] or "",
        is_drop=match["lost"] is not None,
    )


def metric_words(name: str, names: Mapping[str, str]) -> str:
    """A metric name in words; one outside the vocabulary stays as it is."""
    metric = parse(name)
    if metric is None:
        return name
    lost = "loss" if metric.measure in LEVELS else "drop"
    rest = [metric.state, lost if metric.is_drop else "", _FIELDS.get(metric.field, "")]
    return ", ".join([metric.words(names), *filter(None, rest)])


def figure(name: str, value: float | None) -> str:
    """A value in the unit of its metric: a count, percentage points for a drop, percent for a rate."""
    if value is None or not math.isfinite(value):
        return "not measured"
    metric = parse(name)
    if metric is None:
        return f"{value:.3g}"
    if metric.field in ("n", "clusters", "hits"):
        return f"{value:.0f}"
    if metric.measure in LEVELS:
        return in_unit(metric.measure, value)
    if metric.is_drop and metric.field not in ("before", "after"):
        return f"{points(value)} points"
    return percent(value)


def percent(rate: float | None) -> str:
    """A rate in 0..1 as "4.8 %"."""
    return (
        "not measured" if rate is None or not math.isfinite(rate) else f"{100 * rate:.1f}\N{NO-BREAK SPACE}%"
    )


def points(difference: float | None) -> str:
    """A difference of rates in percentage points, with a true minus sign and no "-0.0"."""
    if difference is None or not math.isfinite(difference):
        return "not measured"
    return f"{round(100 * difference, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}")


def in_unit(measure: str, value: float) -> str:
    """A level or a difference of levels as "26.14 dB", with a true minus sign."""
    unit = LEVELS[measure]
    digits = f"{value:.2f}" if unit else f"{value:.3f}"
    return " ".join(filter(None, (digits.replace("-", "\N{MINUS SIGN}"), unit)))


@dataclass(frozen=True)
class LevelRow:
    """One quality of the outputs for one subject, before and after."""

    metric: Metric
    level: Level


def score_of_trials(measurements: Measurements) -> str:
    """What the continuous figure of a trial is called, by what the run is told by."""
    found = (metric for metric in HEADLINES["forget"] if f"forget.{metric}.after" in measurements.rates)
    return SCORES.get(next(found, ""), "Score")


def meanings(measurements: Measurements) -> list[tuple[str, str]]:
    """What each yes-or-no question of a run asks, by its short name; none of ranked answers."""
    asked = {metric.measure for name in measurements.rates if (metric := parse(name)) is not None}
    return [(SHORT[word], means) for word, means in HITS.items() if word in asked]


def level_rows(measurements: Measurements) -> list[LevelRow]:
    """Levels in reading order: subjects, then single neighbours by loss."""
    found = [
        LevelRow(metric, level)
        for name, level in measurements.levels.items()
        if (metric := parse(name)) is not None and metric.subject != "neighbours.worst"
    ]
    order = {measure: place for place, measure in enumerate(LEVELS)}
    return sorted(
        found,
        key=lambda row: (
            order[row.metric.measure],
            (len(_ORDER), -row.level.loss) if row.metric.concept else (_ORDER.index(row.metric.subject), 0.0),
        ),
    )


@dataclass(frozen=True)
class Row:
    """One measure of one subject, before and after."""

    metric: Metric
    before: Rate | None
    after: Rate | None
    drop: Drop | None

    @property
    def wanted(self) -> Literal["low", "high"]:
        """Which end of the scale the request asks for."""
        gone = self.metric.subject in ("forget", "earlier")
        return "low" if gone or self.metric.measure == "harmed" else "high"


def rows(measurements: Measurements) -> Iterator[Row]:
    """Rates and drops brought together: subjects in reading order, single neighbours last, by loss."""
    keys: dict[str, Metric] = {}
    for name in (*measurements.rates, *measurements.drops):
        key = name.removesuffix(".before").removesuffix(".after")
        metric = parse(key)
        if metric is not None and metric.subject != "neighbours.worst":  # it is one of the neighbours
            keys[key] = metric
    found = [
        Row(
            metric,
            measurements.rates.get(f"{key}.before"),
            measurements.rates.get(f"{key}.after"),
            measurements.drops.get(key),
        )
        for key, metric in keys.items()
    ]
    yield from sorted(found, key=_reading_order)


def _reading_order(row: Row) -> tuple[int, float, bool, int, str]:
    metric = row.metric
    if metric.concept:
        loss = row.drop.estimate if row.drop and math.isfinite(row.drop.estimate) else -1.0
        return (len(_ORDER), -loss, False, metric.k, metric.concept)
    return (_ORDER.index(metric.subject), 0.0, metric.measure == "t2i", metric.k, "")
