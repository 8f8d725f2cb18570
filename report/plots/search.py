"""The step search: forget and retained rate against the step size, and the layers it chose between."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from contracts.values import Edit, StepTrial, Tower
from report.plots import theme
from report.plots.profile import short_layer
from report.plots.theme import BLUE, INK, MUTED, PAPER, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JOINT = "*"  # how a trial names its concept or layer when it steps along several at once

# Shapes, not hues: in this figure vermillion and blue already mean forgotten and retained.
_TOWERS: dict[Tower, tuple[str, str]] = {
    "vision": ("o", MUTED),
    "text": ("D", PAPER),
    "language": ("D", PAPER),
    "net": ("o", MUTED),
    "unet": ("o", MUTED),
}


def search_svg(curve: Sequence[StepTrial], trials: Sequence[StepTrial], edits: Sequence[Edit]) -> bytes:
    """Left: rates along the chosen step; right: the best step of each layer, those that were kept ringed."""
    with theme.drawing():
        return theme.svg(_figure(curve, trials, edits))


def search_png(curve: Sequence[StepTrial], trials: Sequence[StepTrial], edits: Sequence[Edit]) -> bytes:
    """The same drawing as `search_svg`, on white."""
    with theme.drawing():
        return theme.png(_figure(curve, trials, edits))


def is_kept(trial: StepTrial, edits: Sequence[Edit]) -> bool:
    """Whether that step went into the edit: of each layer, only its best step has a retained rate."""
    kept = {(concept, edit.layer) for edit in edits for concept in edit.concepts}
    return trial.retained_rate is not None and (trial.concept, trial.layer) in kept


def chosen_step(
    curve: Sequence[StepTrial], trials: Sequence[StepTrial], edits: Sequence[Edit]
) -> float | None:
    """Where the candidate stands on the curve's axis.

    That is λ of the one concept; of several, the common factor on their steps, which the edit of one
    tensor tells: its step size is that factor times the sum of the kept steps.
    """
    if not curve or not edits:
        return None
    if curve[0].concept != JOINT:
        return edits[0].step_size
    kept = sum(t.step_size for t in trials if t.layer == edits[0].layer and is_kept(t, edits[:1]))
    return edits[0].step_size / kept if kept else None


def _figure(curve: Sequence[StepTrial], trials: Sequence[StepTrial], edits: Sequence[Edit]) -> "Figure":
    figure = theme.new_figure(3.1)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _curve(left, curve, chosen_step(curve, trials, edits))
    _trade_off(right, trials, edits)
    return figure


def _curve(axes: "Axes", curve: Sequence[StepTrial], chosen: float | None) -> None:
    if not curve:
        theme.panel_title(axes, "Step size")
        _empty(axes, "no curve was recorded")
        return
    several = curve[0].concept == JOINT
    theme.panel_title(
        axes, "Step size", "all layers" if curve[0].layer == JOINT else short_layer(curve[0].layer)
    )
    _percent_axis(axes)
    axes.set_xlabel("common factor on all steps" if several else "step size λ")
    ordered = sorted(curve, key=lambda t: t.step_size)
    ends: dict[str, float] = {}
    for label, colour, marker, rates in (
        ("FA (forget)", VERMILLION, "o", [t.forget_rate for t in ordered]),
        ("TA (retained)", BLUE, "s", [t.retained_rate for t in ordered]),
    ):
        measured = [(t.step_size, rate) for t, rate in zip(ordered, rates, strict=True) if rate is not None]
        if measured:
            heights = [100 * rate for _, rate in measured]
            axes.plot([x for x, _ in measured], heights, "-", marker=marker, ms=4, lw=1.6, color=colour)
            ends[label] = heights[-1]
    for label, height in _apart(ends).items():
        colour = VERMILLION if label.startswith("FA") else BLUE
        axes.text(1.015, height, label, transform=axes.get_yaxis_transform(), va="center", color=colour)
    if chosen is not None:
        _mark(axes, chosen, f"chosen: {chosen:.3g}")


def _mark(axes: "Axes", x: float, label: str) -> None:
    axes.axvline(x, color=INK, lw=1, ls=(0, (3, 2)), zorder=1)
    on_left = x > sum(axes.get_xlim()) / 2
    axes.annotate(
        label,
        xy=(x, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-4 if on_left else 4, -3),
        textcoords="offset points",
        ha="right" if on_left else "left",
        va="top",
        color=INK,
        fontsize=7,
    )


def _apart(ends: Mapping[str, float], gap: float = 7.0) -> dict[str, float]:
    """Heights of two labels, moved apart where they would touch."""
    if len(ends) < 2 or max(ends.values()) - min(ends.values()) >= gap:
        return dict(ends)
    middle = max(sum(ends.values()) / 2, gap / 2)
    up, down = sorted(ends, key=lambda label: -ends[label])
    return {up: middle + gap / 2, down: middle - gap / 2}


def _trade_off(axes: "Axes", trials: Sequence[StepTrial], edits: Sequence[Edit]) -> None:
    both = [
        (t, 100 * t.retained_rate, 100 * t.forget_rate)
        for t in trials
        if t.retained_rate is not None and math.isfinite(t.retained_rate)
    ]
    theme.panel_title(axes, "Layers compared", f"{len(both)} of {len(trials)} trials")
    if not both:
        _empty(axes, "no trial measured both rates")
        return
    _percent_axis(axes)
    axes.set_xlabel("TA (retained), higher is better")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axes.set_ylabel("FA (forget), lower is better", labelpad=1)
    axes.margins(x=0.12)
    for tower, (marker, face) in _TOWERS.items():
        own = [(x, y) for t, x, y in both if t.tower == tower]
        if own:
            axes.scatter(
                [x for x, _ in own],
                [y for _, y in own],
                s=14,
                marker=marker,
                facecolor=face,
                edgecolor=MUTED,
                linewidth=0.9,
                alpha=0.8,
                zorder=3,
                label="layer" if tower == "net" else f"{tower} layer",
            )
    for t, x, y in both:
        if is_kept(t, edits):
            axes.plot(x, y, "o", ms=10, mfc="none", mec=INK, mew=1.4, zorder=5)
    axes.legend(frameon=False, handletextpad=0.1, labelcolor=MUTED, fontsize=7)


def _percent_axis(axes: "Axes") -> None:
    axes.set_ylim(-4, 106)
    axes.set_yticks(range(0, 101, 25), [f"{y} %" for y in range(0, 101, 25)])


def _empty(axes: "Axes", words: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED)
