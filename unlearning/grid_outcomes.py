"""What an independent classifier says of drawn pictures, as item-level rows and as UnlearnCanvas's rates.

A cell of the grid is an object in a style with a seed; the picture is drawn before and after from the same
noise.  When an object is forgotten,

    forget    cells of the object: the rank of the object               UA = share that is not first
    retain    cells of other objects: the rank of their object          IRA = share that is first
    cross     cells of other objects: the rank of their style           CRA = share that is first
    control   cells of objects that the model never drew: the rank of their object

and likewise with the axes exchanged.  Rows have the columns of `gates.outcomes`; a cell's cluster is its
object and style, because pictures of one prompt differ by noise alone.  A tie is read the way that is worse
for us, as everywhere (`unlearning.zero_shot`).

Shapes: N pictures, C classes of an axis.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from contracts.errors import InputError
from contracts.values import OTHER_AXIS, Axis
from unlearning.zero_shot import Ties, classification_ranks

TIES: Mapping[str, Ties] = {
    "forget": "best",
    "control": "best",
    "retain": "worst",
    "neighbour": "worst",
    "cross": "worst",
}


@dataclass(frozen=True)
class Cell:
    """One picture that is drawn: opaque ids of its object and style, and its seed."""

    object: str
    style: str
    seed: int

    def item(self, axis: Axis) -> str:
        """Opaque id of the picture as it is asked about on an axis: two questions are two items."""
        return "i-" + sha256(f"{self.object}:{self.style}:{self.seed}:{axis}".encode()).hexdigest()[:16]

    @property
    def cluster(self) -> str:
        """What the picture is a draw of."""
        return f"{self.object}/{self.style}"


@dataclass(frozen=True, eq=False)
class Judged:
    """Logits (N, C) by axis, and the class ids that the columns of each stand for."""

    logits: Mapping[Axis, Tensor]
    classes: Mapping[Axis, Sequence[str]]


def outcome_rows(
    cells: Sequence[Cell],
    judged: Judged,
    state: str,
    axis: Axis,
    targets: Sequence[str],
    controls: Sequence[str] = (),
    neighbours: Sequence[str] = (),
) -> list[dict[str, str | int]]:
    """Rows of one state for `gates.outcomes`.

    Args:
        cells: N, in the order of the logits.
        judged: what the classifier says of their pictures.
        state: before or after.
        axis: of what is forgotten.
        targets: ids that are forgotten.
        controls: ids of that axis that the model never drew.
        neighbours: ids whose rows count as neighbours, too.

    Raises:
        InputError: cells and logits do not match, or an id is none of the classifier's.
        ModelError: a logit is NaN.
    """
    rows: list[dict[str, str | int]] = []
    for group, on, own in _groups(cells, axis, set(targets), set(controls), set(neighbours)):
        if not own:
            continue
        labels = [_place(judged.classes[on], getattr(cells[i], on)) for i in own]
        logits = judged.logits[on]
        if len(logits) != len(cells):
            raise InputError(f"{len(cells)} cells do not match {len(logits)} rows of logits")
        ranks = classification_ranks(logits[own], torch.tensor(labels), TIES[group])
        rows += [
            {
                "item": cells[i].item(on),
                "cluster": cells[i].cluster,
                "group": group,
                "concept": getattr(cells[i], on),
                "direction": "i2t",
                "state": state,
                "rank": rank,
            }
            for i, rank in zip(own, ranks.tolist(), strict=True)
        ]
    return rows


def canvas_rates(rows: Sequence[Mapping[str, str | int]], state: str = "after") -> dict[str, float]:
    """UA, IRA and CRA in 0..1 of the rows of one state; an empty group yields no rate."""
    rates = {}
    for name, group in (("UA", "forget"), ("IRA", "retain"), ("CRA", "cross")):
        hits = [row["rank"] == 1 for row in rows if row["group"] == group and row["state"] == state]
        if hits:
            share = sum(hits) / len(hits)
            rates[name] = 1.0 - share if name == "UA" else share
    return rates


def _groups(
    cells: Sequence[Cell], axis: Axis, targets: set[str], controls: set[str], neighbours: set[str]
) -> Iterator[tuple[str, Axis, list[int]]]:
    """(group, axis whose class is asked, places of its cells)."""
    named = [getattr(cell, axis) for cell in cells]
    kept = [i for i, name in enumerate(named) if name not in targets | controls]
    yield "forget", axis, [i for i, name in enumerate(named) if name in targets]
    yield "control", axis, [i for i, name in enumerate(named) if name in controls]
    yield "retain", axis, kept
    yield "neighbour", axis, [i for i in kept if named[i] in neighbours]
    yield "cross", OTHER_AXIS[axis], kept


def _place(classes: Sequence[str], wanted: str) -> int:
    if wanted not in classes:
        raise InputError(f"the classifier does not know {wanted}")
    return list(classes).index(wanted)
