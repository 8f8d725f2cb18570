"""The comparison as figures: SVG files that follow the reader's light or dark scheme."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from bench.rows import Row
from bench.summary import VERDICTS, Reader, at
from report.plots import theme
from report.plots.theme import BLUE, FAINT, GREEN, INK, MUTED, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "single": ("o", BLUE, "singles"),
    "family": ("^", VERMILLION, "families"),
    "style": ("s", GREEN, "styles"),
}
_VERDICT_COLOURS = dict(zip(VERDICTS, (GREEN, VERMILLION, FAINT), strict=True))
_FORGOTTEN, _LOST = at("rates", "forget.fa1", "after", "estimate"), at("drops", "retain.ta1", "estimate")
# What the audits still find: (title, unedited, edited).
AUDITED: Sequence[tuple[str, Reader, Reader]] = (
    (
        "linear probe finds (5 % false alarms)",
        at("audits", "probe", "before", "caught", "estimate"),
        at("audits", "probe", "after", "caught", "estimate"),
    ),
    (
        "FA@1 after retain-only fine-tuning",
        at("audits", "relearn", "before", "fa1", "estimate"),
        at("audits", "relearn", "after", "fa1", "estimate"),
    ),
)
_COLUMNS = 4
_ROW_IN = 0.24


def plots(rows: Sequence[Row]) -> dict[str, bytes]:
    """File name -> SVG; what no row has figures for is not drawn."""
    done = [row for row in rows if not row["error"]]
    drawings = {}
    with theme.drawing():
        if done:
            drawings["forgetting-vs-collateral.svg"] = theme.svg(_scatter(done))
            drawings["verdicts.svg"] = theme.svg(_verdicts(done))
        audited = [each for each in AUDITED if any(each[2](row) is not None for row in done)]
        if audited:
            drawings["audits.svg"] = theme.svg(_audits(done, audited))
    return drawings


def _labels(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["label"] for row in rows))


def _scatter(rows: Sequence[Row]) -> "Figure":
    """One panel per contender, all on the same axes, everybody else's rows faint behind."""
    labels = _labels(rows)
    n_rows = -(-len(labels) // _COLUMNS)
    figure = theme.new_figure(0.5 + 1.6 * n_rows)
    panels = figure.subplots(n_rows, _COLUMNS, sharex=True, sharey=True, squeeze=False)
    for axes, label in zip(panels.flat, labels, strict=False):
        axes.scatter(*_points(rows), s=3, c=FAINT, alpha=0.35, linewidths=0)
        for kind, (marker, colour, title) in KINDS.items():
            own = [row for row in rows if row["label"] == label and row["kind"] == kind]
            axes.scatter(*_points(own), s=13, marker=marker, c=colour, alpha=0.8, linewidths=0, label=title)
        axes.set_title(label, fontsize=7)
    for axes in panels.flat[len(labels) :]:
        axes.set_visible(False)
    figure.supxlabel("FA@1 on the holdout hands, %", fontsize=7.5, color=MUTED)
    figure.supylabel("TA@1 lost, points", fontsize=7.5, color=MUTED)
    handles, names = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=len(KINDS), frameon=False)
    return figure


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    pairs = [(x, y) for row in rows if (x := _FORGOTTEN(row)) is not None and (y := _LOST(row)) is not None]
    return [100 * x for x, _ in pairs], [100 * y for _, y in pairs]


def _verdicts(rows: Sequence[Row]) -> "Figure":
    labels = _labels(rows)
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in rows)]
    figure = theme.new_figure(0.9 + _ROW_IN * len(labels))
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        start = [0] * len(labels)
        for verdict, colour in _VERDICT_COLOURS.items():
            counts = [
                sum((row["label"], row["kind"], row["verdict"]) == (label, kind, verdict) for row in rows)
                for label in labels
            ]
            axes.barh(labels, counts, left=start, color=colour, height=0.7, label=verdict)
            start = [done + more for done, more in zip(start, counts, strict=True)]
        theme.panel_title(axes, KINDS[kind][2])
        axes.grid(visible=False, axis="y")
    panels[0].invert_yaxis()
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower right", ncols=len(VERDICTS), frameon=False)
    return figure


def _audits(rows: Sequence[Row], audited: Sequence[tuple[str, Reader, Reader]]) -> "Figure":
    """Medians and quartiles over the requests: the edited model full, the unedited one hollow."""
    labels = _labels(rows)
    figure = theme.new_figure(0.9 + _ROW_IN * len(labels))
    panels = figure.subplots(1, len(audited), sharey=True, squeeze=False)[0]
    for axes, (title, before, after) in zip(panels, audited, strict=True):
        by_label = {label: [row for row in rows if row["label"] == label] for label in labels}
        _dots(axes, {label: _read(own, before) for label, own in by_label.items()}, hollow=True)
        _dots(axes, {label: _read(own, after) for label, own in by_label.items()}, hollow=False)
        theme.panel_title(axes, title, "%")
        axes.set_xlim(-3, 103)
        axes.set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    return figure


def _read(rows: Sequence[Row], figure: Reader) -> list[float]:
    return [100 * value for row in rows if (value := figure(row)) is not None]


def _dots(axes: "Axes", values: Mapping[str, list[float]], hollow: bool) -> None:
    import numpy as np

    for place, found in enumerate(values.values()):
        if not found:
            continue
        low, middle, high = np.percentile(found, (25, 50, 75))
        if hollow:
            axes.plot(middle, place, "o", mfc="none", mec=MUTED, ms=5)
        else:
            axes.plot((low, high), (place, place), color=BLUE, lw=1.6)
            axes.plot(middle, place, "o", color=INK, ms=4)
