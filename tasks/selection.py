"""Which rows of which set play which part in one request."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import SetError
from contracts.values import Plan
from data.layout import read_items

if TYPE_CHECKING:
    import pandas as pd

# Views of a held-out drawing that neighbours and controls are measured on; forget items use all.
VIEWS = 8


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows of items.parquet by the part they play.

    search: the targets in every view, the retained concepts as drawn (nothing erased before).
    forget, neighbours, retained, control: what the verdict is computed on; neighbours as drawn are
    retained concepts too.
    """

    forget_set: pd.DataFrame
    retain_set: pd.DataFrame
    search: pd.DataFrame
    forget: pd.DataFrame
    neighbours: pd.DataFrame
    retained: pd.DataFrame
    control: pd.DataFrame


def select(plan: Plan, folder: Path, known: frozenset[str]) -> Parts:
    """Pick the rows.

    Args:
        plan: names targets, neighbours and what was erased before.
        folder: the run folder, with one sub-folder per set role.
        known: ids of the concepts that the model was trained on, on the plan's axis.

    Raises:
        SetError: a part has no rows.
    """
    label = plan.axis
    targets, gone = set(plan.targets), {*plan.targets, *plan.erased_before}
    forget_set, retain_set, search, holdout, control = (
        read_items(folder / role) for role in ("forget", "retain", "search", "holdout", "control")
    )
    forget_set = forget_set[forget_set[label].isin(targets)]
    keeps = search[search[label].isin(known - gone) & (search["view"] == 0)]
    parts = Parts(
        forget_set=forget_set,
        # What was erased before must not be taught again by the gradient that stands for "keep this".
        retain_set=retain_set[~retain_set[label].isin(gone)],
        search=search[search[label].isin(targets) | search.index.isin(keeps.index)],
        forget=holdout[holdout[label].isin(targets)],
        neighbours=holdout[holdout[label].isin(plan.neighbours) & (holdout["view"] < VIEWS)],
        retained=holdout[holdout[label].isin(known - gone) & (holdout["view"] == 0)],
        control=control[control["view"] < VIEWS],
    )
    for part, rows in vars(parts).items():
        if rows.empty and part != "neighbours":
            raise SetError(f"request {plan.request_id}: no item is left for the part {part!r}")
    return parts
