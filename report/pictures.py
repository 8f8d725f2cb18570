"""The figures of one record as data URIs, each with the text that stands in for it."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from report import plots
from report.metrics import Row, points, rows
from report.plots.profile import short_layer
from report.record import RunRecord

_GROUPS = {
    "forget": "To be forgotten (lower is better)",
    "earlier": "Erased by earlier requests, at worst (lower is better)",
    "retain": "To be kept (higher is better)",
    "cross": "What else is to be kept (higher is better)",
    "neighbours": "Neighbours together (higher is better)",
    "control": "Control, never known to the model (should stay low)",
}

NAMED = 5  # layers in a text that is read aloud


@dataclass(frozen=True)
class Picture:
    """What an <img> needs: a data URI and the words for those who do not see it."""

    src: str
    alt: str


def profile_picture(record: RunRecord) -> Picture:
    """Importance against alignment."""
    layers = {s.layer for scores in record.profile.values() for s in scores}
    front = {s.layer for scores in record.profile.values() for s in scores if s.on_front}
    alt = (
        f"Importance against alignment of {len(layers)} layers on logarithmic axes. "
        f"Searched: {_layers(front)}. Edited: {_layers({e.layer for e in record.edits})}."
    )
    return _svg(plots.profile_svg(record.profile, record.edits, record.names), alt)


def search_picture(record: RunRecord) -> Picture:
    """FA and TA against the step size, and the layers the search chose between."""
    chosen = "; ".join(f"λ = {e.step_size:.3g} on {short_layer(e.layer, 60)}" for e in record.edits[:NAMED])
    if len(record.edits) > NAMED:
        chosen += f"; and {len(record.edits) - NAMED} more"
    alt = (
        f"Forget and retained accuracy against the step size, {len(record.curve)} points, "
        f"and the trade-off between both for the best step of each layer. Chosen: {chosen or 'none'}."
    )
    return _svg(plots.search_svg(record.curve, record.trials, record.edits), alt)


def headline_picture(record: RunRecord) -> Picture:
    """Before and after of everything but single neighbours."""
    return _intervals(
        [r for r in rows(record.measurements) if not r.metric.concept], record, "The headline measures"
    )


def neighbours_picture(record: RunRecord) -> Picture:
    """Before and after, neighbour by neighbour, the worst loss first."""
    return _intervals(
        [r for r in rows(record.measurements) if r.metric.concept], record, "Accuracy by neighbour"
    )


def _intervals(shown: Iterable[Row], record: RunRecord, what: str) -> Picture:
    kept = list(shown)
    pairs = [
        plots.Pair(
            label=record.name(r.metric.concept) if r.metric.concept else r.metric.score,
            before=r.before,
            after=r.after,
            wanted=r.wanted,
            group="" if r.metric.concept else _GROUPS[r.metric.subject],
        )
        for r in kept
    ]
    falls = [r.drop.estimate for r in kept if r.drop]
    worst = f" The largest drop is {points(max(falls))} points." if falls else ""
    size = f"{len(kept)} rows; the table holds the same figures"
    alt = f"{what} before and after with 95 % bounds, {size}.{worst}"
    return _svg(plots.intervals_svg(pairs), alt)


def _layers(layers: Iterable[str]) -> str:
    return ", ".join(sorted(short_layer(layer, 60) for layer in layers)) or "none"


def _svg(data: bytes, alt: str) -> Picture:
    return Picture("data:image/svg+xml;base64," + base64.b64encode(data).decode(), alt)
