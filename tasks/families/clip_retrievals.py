"""Retrievals for the report: held-out queries and first answers, before and after, with pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contracts.values import Plan
from tasks.run import Run

if TYPE_CHECKING:
    from report.record import Retrieval

PIXELS = 64


def retrievals(run: Run, plan: Plan, found: list[dict[str, Any]]) -> tuple[Retrieval, ...]:
    """The retrievals that `clip_measure` noted down in ids, with the pictures of their items."""
    import pandas as pd

    from data.layout import read_items
    from report.record import Hit, Retrieval

    sets = [read_items(run.path(role)).assign(role=role) for role in ("holdout", "control")]
    items = pd.concat(sets).set_index("id", drop=False)
    pictures = _Pictures(run, items)

    def hits(entry: dict[str, Any], state: str) -> tuple[Hit, ...]:
        if entry["kind"] == "i2t":
            return tuple(Hit(label, score) for label, score in entry[state])
        return tuple(Hit(str(items.loc[i, plan.axis]), score, pictures[i]) for i, score in entry[state])

    return tuple(
        Retrieval(
            kind=entry["kind"],
            query=entry["query"],
            before=hits(entry, "before"),
            after=hits(entry, "after"),
            image=pictures[entry["item"]] if entry["kind"] == "i2t" else "",
        )
        for entry in found
    )


class _Pictures:
    """Held-out pictures by item id, as base64 PNG."""

    def __init__(self, run: Run, items: Any) -> None:
        self._run = run
        self._items = items

    def __getitem__(self, item: str) -> str:
        from data.reader import load_images
        from tasks.pictures import png

        row = self._items.loc[[item]]
        pixels = load_images(self._run.path(row["role"].iloc[0]), row, PIXELS)[0]
        return png(pixels)
