"""Importance against alignment of every candidate tensor (SLUG, arXiv 2407.11867, figures 2 and 22)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contracts.values import Edit, LayerScore, Tower
from report.plots import theme
from report.plots.theme import FAINT, GREEN, INK, MUTED, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A cosine below this is rounding of fp32 sums, not geometry; such layers stand on this line as triangles.
ALIGNMENT_FLOOR = 1e-4
LABELS_PER_PANEL = 14
# Share of the panel kept free, left of all points, for the labels: of one concept, of several.
_LABEL_GUTTER = (0.36, 0.52)
_TITLES: dict[Tower, str] = {
    "vision": "Vision tower",
    "text": "Text tower",
    "language": "Language model",
    "net": "The network",
    "unet": "UNet",
}
_NOISE = re.compile(r"^visual\.|transformer\.|resblocks\.|[._]weight$")

Profiles = Mapping[str, Sequence[LayerScore]]
"""Layer scores by concept id."""


def scored_together(profiles: Profiles) -> list[tuple[tuple[str, ...], Sequence[LayerScore]]]:
    """Concepts and their scores; those that a method profiled as one have the same, and are one entry."""
    found: dict[tuple[LayerScore, ...], list[str]] = {}
    for concept, scores in profiles.items():
        found.setdefault(tuple(scores), []).append(concept)
    return [(tuple(concepts), scores) for scores, concepts in found.items()]


@dataclass(frozen=True)
class _Point:
    score: LayerScore
    x: float
    y: float
    marker: str
    edited: bool
    label: str


def profile_svg(profiles: Profiles, edits: Sequence[Edit], names: Mapping[str, str]) -> bytes:
    """One panel per tower: front layers filled, joined and named, edited layers ringed.

    With several concepts, unless they were profiled as one, nothing is joined and only the edited layers are
    named, each with its concept.
    """
    with theme.drawing():
        return theme.svg(_figure(profiles, edits, names))


def profile_png(profiles: Profiles, edits: Sequence[Edit], names: Mapping[str, str]) -> bytes:
    """The same drawing as `profile_svg`, on white."""
    with theme.drawing():
        return theme.png(_figure(profiles, edits, names))


def short_layer(layer: str, limit: int = 24) -> str:
    """A layer name as the paper prints it ("11.attn.out_proj"), cut in the middle if longer than `limit`."""
    return _cut(_NOISE.sub("", layer) or layer, limit)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    tail = (limit - 1) * 3 // 4  # the number of the block and the name in it stand at the end
    return f"{text[: limit - 1 - tail]}…{text[-tail:]}"


def _figure(profiles: Profiles, edits: Sequence[Edit], names: Mapping[str, str]) -> "Figure":
    points = _points(profiles, edits, names)
    towers = [tower for tower in _TITLES if any(p.score.tower == tower for p in points)]
    figure = theme.new_figure(3.7)
    figure.set_layout_engine("constrained", wspace=0.06)
    if not towers:
        figure.text(0.5, 0.5, "no layer was profiled", ha="center", va="center", color=MUTED)
        return figure
    panels = figure.subplots(1, len(towers), sharex=True, sharey=True, squeeze=False)[0]
    single = len(scored_together(profiles)) == 1
    _limits(panels[0], points, _LABEL_GUTTER[not single])
    panels[0].set_ylabel("importance")
    figure.supxlabel("alignment", fontsize=7.5, color=MUTED)
    for axes, tower in zip(panels, towers, strict=True):
        own = [p for p in points if p.score.tower == tower]
        layers = len({p.score.layer for p in own})
        front = sum(p.score.on_front for p in own)
        rest = f"{front} searched" if single else f"{len(profiles)} concepts"
        theme.panel_title(axes, _TITLES[tower], f"{layers} layers, {rest}")
        _panel(axes, own, single=single)
    return figure


def _points(profiles: Profiles, edits: Sequence[Edit], names: Mapping[str, str]) -> list[_Point]:
    """Every layer on log axes; what is zero or has no direction is lifted to the axis' floor."""
    edited = {(concept, edit.layer) for edit in edits for concept in edit.concepts}
    positive = [s.importance for scores in profiles.values() for s in scores if s.importance > 0]
    floor = min(positive, default=1e-6) / 3
    points = []
    groups = scored_together(profiles)
    for concepts, scores in groups:
        for s in scores:
            low_x = not s.alignment >= ALIGNMENT_FLOOR  # true for NaN, too: a zero gradient has no direction
            low_y = not s.importance > 0
            x, y = ALIGNMENT_FLOOR if low_x else s.alignment, floor if low_y else s.importance
            is_edited = (concepts[0], s.layer) in edited  # one profile, one edit
            label = short_layer(s.layer) + (" (edited)" if is_edited else "")
            if len(groups) > 1:
                of = ", ".join(names.get(concept, concept) for concept in concepts)
                label = f"{short_layer(s.layer, 18)}  {_cut(of, 16)}"
            points.append(_Point(s, x, y, "<" if low_x else "v" if low_y else "o", is_edited, label))
    return points


def _limits(axes: "Axes", points: Sequence[_Point], gutter: float) -> None:
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    xs, ys = [p.x for p in points], [p.y for p in points]
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = min(xs) / 1.15, max(max(xs) * 1.4, min(xs) * 10)
    axes.set_xlim(low / (high / low) ** (gutter / (1 - gutter)), high)
    axes.set_ylim(min(ys) / 1.6, max(max(ys) * 1.8, min(ys) * 10))
    decades = [10.0**k for k in range(-4, 1)]  # none in the label gutter, where no layer stands
    axes.xaxis.set_major_locator(FixedLocator([d for d in decades if low <= d <= high]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    lifted = any(p.marker == "<" for p in points)
    floor = ALIGNMENT_FLOOR * 1.01
    axes.xaxis.set_major_formatter(lambda value, _: ("≤" if lifted and value < floor else "") + f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _panel(axes: "Axes", points: Sequence[_Point], *, single: bool) -> None:
    for p in points:
        if p.score.on_front:
            axes.plot(p.x, p.y, p.marker, ms=5.5 if single else 3.5, color=GREEN, zorder=4)
        else:
            size = 4.5 if single else 3
            axes.plot(p.x, p.y, p.marker, ms=size, mfc=PAPER, mec=FAINT, mew=1, zorder=2)
        if p.edited:
            axes.plot(p.x, p.y, "o", ms=12 if single else 9, mfc="none", mec=INK, mew=1.5, zorder=5)
    if single:
        front = sorted((p.x, p.y) for p in points if p.score.on_front)
        axes.plot([x for x, _ in front], [y for _, y in front], "-", color=GREEN, lw=1, alpha=0.5, zorder=1)
    named = [p for p in points if p.edited or (single and p.score.on_front)]
    named.sort(key=lambda p: (not p.edited, -p.y, p.label))
    _label(axes, named[:LABELS_PER_PANEL], bold_edited=single)
    if len(named) > LABELS_PER_PANEL:
        more = f"+ {len(named) - LABELS_PER_PANEL} more in the table"
        axes.text(0.015, 0.015, more, transform=axes.transAxes, color=MUTED, fontsize=6.5)


def _label(axes: "Axes", points: Sequence[_Point], *, bold_edited: bool) -> None:
    """Names in a column at the left, joined to their points.

    Nothing stands left of and above a front layer, so a column sorted by height needs no line
    to cross a point; only the heights have to be spread.
    """
    ordered = sorted(points, key=lambda p: (p.y, p.label))
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [float(to_axes.transform((p.x, p.y))[1]) for p in ordered]
    for p, height in zip(ordered, spread(wanted, gap=0.058), strict=True):
        axes.annotate(
            p.label,
            xy=(p.x, p.y),
            xytext=(0.015, height),
            textcoords="axes fraction",
            va="center",
            fontsize=6.8,
            fontweight="bold" if p.edited and bold_edited else "normal",
            color=INK,
            arrowprops={
                "arrowstyle": "-",
                "color": FAINT,
                "lw": 0.6,
                "relpos": (1, 0.5),
                "shrinkA": 1,
                "shrinkB": 6 if p.edited else 3,
            },
            zorder=6,
        )


def spread(wanted: Sequence[float], gap: float, low: float = 0.05, high: float = 0.95) -> list[float]:
    """Heights near `wanted` (both ascending), at least `gap` apart, inside [low, high] if they fit."""
    heights = list(wanted)
    for i in range(len(heights)):
        heights[i] = max(heights[i], low if i == 0 else heights[i - 1] + gap)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], high if i == len(heights) - 1 else heights[i + 1] - gap)
    return heights
