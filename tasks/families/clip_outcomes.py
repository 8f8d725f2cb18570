"""Item-level outcomes of one state: which rank the right answer has, for every measured item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from contracts.values import OTHER_AXIS, Axis, Plan
from tasks.families.clip_inputs import Classes
from tasks.families.clip_selection import Parts

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from unlearning.zero_shot import Ties

# part -> group of the outcome table, and the reading of a tie that is worse for us.
GROUPS: Mapping[str, tuple[str, Ties]] = {
    "forget": ("forget", "best"),
    "neighbours": ("neighbour", "worst"),
    "retained": ("retain", "worst"),
    "control": ("control", "best"),
    "cross": ("cross", "worst"),
}


class Scored(Protocol):
    """What a model says about the measured rows: see `tasks.families.clip_measure.Features`."""

    def scores(self, axis: Axis) -> Tensor:
        """Cosine of every row's image with every class of an axis, (N, C)."""


def outcomes(
    told: Scored, rows: pd.DataFrame, parts: Parts, classes: Mapping[Axis, Classes], plan: Plan, state: str
) -> pd.DataFrame:
    """The item-level table (see `gates.outcomes`) of one state, image to text and text to image.

    Args:
        told: what the model says about `rows`.
        rows: N measured items, indexed from 0.
        parts: which of them play which part.
        classes: the zero-shot task of either axis.
        plan: axis, targets, and what was erased before.
        state: before or after.
    """
    import pandas as pd

    place = dict(zip(rows["id"], range(len(rows)), strict=True))
    scores = {axis: told.scores(axis) for axis in classes}
    tables = []
    for part, (group, ties) in GROUPS.items():
        own: pd.DataFrame = getattr(parts, part)
        axis = OTHER_AXIS[plan.axis] if part == "cross" else plan.axis
        if len(own):
            tables.append(_image_to_text(scores[axis], own, place, classes[axis], axis, group, ties, state))
    measured = rows[~rows["id"].isin(parts.cross["id"])]
    return pd.concat([*tables, *_text_to_image(scores[plan.axis], measured, classes[plan.axis], plan, state)])


def _image_to_text(
    scores: Tensor,
    own: pd.DataFrame,
    place: Mapping[str, int],
    classes: Classes,
    axis: Axis,
    group: str,
    ties: Ties,
    state: str,
) -> pd.DataFrame:
    import torch

    from unlearning.zero_shot import classification_ranks

    where = torch.tensor([place[i] for i in own["id"]])
    labels = torch.tensor([classes.place(label) for label in own[axis]])
    ranks = classification_ranks(scores[where], labels, ties)
    return _rows(own["id"], own["source"], group, own[axis], "i2t", state, ranks.tolist())


def _text_to_image(
    scores: Tensor, rows: pd.DataFrame, classes: Classes, plan: Plan, state: str
) -> Iterator[pd.DataFrame]:
    """Every known class's text against all drawings of known classes; what was erased before is left out."""
    import torch

    from unlearning.zero_shot import retrieval_ranks

    drawn = rows.index[rows[plan.axis].isin(classes.known - set(plan.erased_before)) & (rows["view"] == 0)]
    gallery = torch.tensor(drawn.tolist())
    labels = torch.tensor([classes.place(label) for label in rows.loc[drawn, plan.axis]])
    present = set(rows.loc[drawn, plan.axis])
    for group, ids, ties in (
        ("forget", [t for t in plan.targets if t in present], GROUPS["forget"][1]),
        ("retain", sorted(present - set(plan.targets)), GROUPS["retained"][1]),
    ):
        if not ids:
            continue  # no target has an item as drawn
        asked = torch.tensor([classes.place(i) for i in ids])
        ranks = retrieval_ranks(scores[gallery], labels, asked, ties)
        yield _rows(ids, ids, group, ids, "t2i", state, ranks.tolist())


def _rows(
    items: Any, clusters: Any, group: str, concepts: Any, question: str, state: str, ranks: list[int]
) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "item": list(items),
            "cluster": list(clusters),
            "group": group,
            "concept": list(concepts),
            "question": question,
            "state": state,
            "rank": ranks,
        }
    )
