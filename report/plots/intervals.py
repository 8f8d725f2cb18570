"""Rates before and after with their 95 % bounds, one row each: a dumbbell plot."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from contracts.values import Rate
from report.plots import theme
from report.plots.theme import BLUE, INK, MUTED, PAPER, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN = 0.235  # inches of height per row
_LABEL_CHARS = 44
_COLOURS = {"low": VERMILLION, "high": BLUE}


@dataclass(frozen=True)
class Pair:
    """One row: the same rate before and after.

    `wanted` says which end of the axis the request asks for: "low" for what is to be forgotten,
    "high" for what must survive.  Rows of equal, adjacent `group` stand under one heading.
    """

    label: str
    before: Rate | None
    after: Rate | None
    wanted: Literal["low", "high"]
    group: str = ""


def intervals_svg(pairs: Sequence[Pair]) -> bytes:
    """Hollow circle = before, full circle = after, line = exact 95 % bounds; rates 0..1 shown in percent."""
    with theme.drawing():
        return theme.svg(_figure(pairs))


def intervals_png(pairs: Sequence[Pair]) -> bytes:
    """The same drawing as `intervals_svg`, on white."""
    with theme.drawing():
        return theme.png(_figure(pairs))


def _figure(pairs: Sequence[Pair]) -> "Figure":
    groups = [(title, list(rows)) for title, rows in groupby(pairs, key=lambda pair: pair.group)]
    lines = len(pairs) + sum(bool(title) for title, _ in groups)
    figure = theme.new_figure(0.75 + _ROW_IN * max(lines, 1))
    axes = figure.subplots()
    heights: list[float] = []
    labels: list[str] = []
    y = 0.0
    for title, rows in groups:
        if title:
            y -= 1
            axes.text(0, y, title, transform=axes.get_yaxis_transform(), va="center", fontweight="bold")
        for pair in rows:
            y -= 1
            _row(axes, pair, y)
            heights.append(y)
            labels.append(_cut(pair.label))
    axes.set_yticks(heights, labels, color=INK)
    axes.set_ylim(y - 0.7, -0.3)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 20), [f"{x} %" for x in range(0, 101, 20)])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    _key(axes)
    return figure


def _row(axes: "Axes", pair: Pair, y: float) -> None:
    colour = _COLOURS[pair.wanted]
    before, after = _percent(pair.before), _percent(pair.after)
    if before and after and abs(before[0] - after[0]) > 2.5:  # shorter than the circles, a shaft is noise
        axes.annotate(
            "",
            xy=(after[0], y),
            xytext=(before[0], y),
            arrowprops={
                "arrowstyle": "-|>",
                "color": colour,
                "lw": 1,
                "alpha": 0.55,
                "shrinkA": 3,
                "shrinkB": 3,
            },
        )
    # Bounds a little above and below the row, so that overlapping ones stay apart.
    for values, lift, face in ((before, 0.17, PAPER), (after, -0.17, colour)):
        if values:
            axes.plot(values[1:], [y + lift] * 2, "-", color=colour, lw=1.5, alpha=0.5, solid_capstyle="butt")
            axes.plot(values[0], y + lift, "o", ms=5, mfc=face, mec=colour, mew=1.2, zorder=4)
    told = " → ".join("not measured" if v is None else f"{v[0]:.1f}" for v in (before, after))
    axes.text(1.015, y, told, transform=axes.get_yaxis_transform(), va="center_baseline", color=INK)


def _percent(rate: Rate | None) -> tuple[float, float, float] | None:
    """Estimate, lower and upper bound in percent; a rate that is not finite counts as not measured."""
    if rate is None:
        return None
    values = (rate.estimate * 100, rate.lower95 * 100, rate.upper95 * 100)
    return values if all(map(math.isfinite, values)) else None


def _key(axes: "Axes") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], ls="", marker="o", ms=5, mfc=face, mec=MUTED, mew=1.2, label=label)
        for face, label in ((PAPER, "before"), (MUTED, "after"))
    ]
    handles.append(Line2D([], [], color=MUTED, lw=1.5, alpha=0.6, label="95 % bounds"))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0,
        borderpad=0.3,
        handletextpad=0.4,
        labelcolor=MUTED,
    )


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL_CHARS else label[: _LABEL_CHARS - 1] + "…"
