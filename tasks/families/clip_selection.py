"""Which rows of which set play which part in one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import SetError
from contracts.values import OTHER_AXIS, Axis, Plan
from data.layout import read_items

if TYPE_CHECKING:
    import pandas as pd

# Views of a held-out drawing that neighbours and controls are measured on; forget items use all.
VIEWS = 8


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows of items.parquet by the part they play.

    search: the targets in every view, the retained concepts as drawn (nothing erased before).
    forget, neighbours, retained, control, cross: what the verdict is computed on; neighbours as drawn
    are retained concepts too; cross is labelled on the other axis, and empty where no such set is given.
    """

    forget_set: pd.DataFrame
    retain_set: pd.DataFrame
    search: pd.DataFrame
    forget: pd.DataFrame
    neighbours: pd.DataFrame
    retained: pd.DataFrame
    control: pd.DataFrame
    cross: pd.DataFrame


MAY_BE_EMPTY = ("neighbours", "cross")


def select(plan: Plan, folder: Path, known: Mapping[Axis, frozenset[str]]) -> Parts:
    """Pick the rows.

    Args:
        plan: names targets, neighbours and what was erased before.
        folder: the run folder, with one sub-folder per set role.
        known: ids of what the model was trained on, by axis; the other axis only if there is a cross set.

    Raises:
        SetError: a part has no rows.
    """
    label, other = plan.axis, OTHER_AXIS[plan.axis]
    targets, gone = set(plan.targets), {*plan.targets, *plan.erased_before}
    forget_set, retain_set, search, holdout, control = (
        read_items(folder / role) for role in ("forget", "retain", "search", "holdout", "control")
    )
    forget_set = forget_set[forget_set[label].isin(targets)]
    keeps = search[search[label].isin(known[label] - gone) & (search["view"] == 0)]
    retained = holdout[label].isin(known[label] - gone) & (holdout["view"] == 0)
    crossing = read_items(folder / "cross") if other in known else holdout.iloc[:0]
    parts = Parts(
        forget_set=forget_set,
        # What was erased before must not be taught again by the gradient that stands for "keep this".
        retain_set=retain_set[~retain_set[label].isin(gone)],
        search=search[search[label].isin(targets) | search.index.isin(keeps.index)],
        forget=holdout[holdout[label].isin(targets)],
        neighbours=holdout[holdout[label].isin(plan.neighbours) & (holdout["view"] < VIEWS)],
        retained=holdout[retained],
        control=control[control["view"] < VIEWS],
        cross=crossing[
            crossing[other].isin(known.get(other, frozenset()) - gone)
            & ~crossing[label].isin(gone)
            & (crossing["view"] == 0)
        ],
    )
    for part, rows in vars(parts).items():
        if rows.empty and part not in MAY_BE_EMPTY:
            raise SetError(f"request {plan.request_id}: no item is left for the part {part!r}")
    return parts
