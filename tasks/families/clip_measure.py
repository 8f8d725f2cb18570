"""What an original and an edited CLIP model say about every held-out item."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.values import Axis, Plan, Tower
from tasks.families import Measured
from tasks.families.clip_inputs import Classes, classes_by_axis
from tasks.families.clip_outcomes import outcomes
from tasks.families.clip_selection import Parts, select

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from unlearning.families.clip import ClipModel

SHOWN = 5


@dataclass(frozen=True, eq=False)
class Features:
    """Image features (N, D) of the rows that are measured, and class embeddings (C, D) by axis."""

    images: Tensor
    classes: Mapping[Axis, Tensor]

    def scores(self, axis: Axis) -> Tensor:
        """Cosine of every image with every class of an axis, (N, C), on the CPU like the labels."""
        return (self.images @ self.classes[axis].T).cpu()


def measured(
    plan: Plan, folder: Path, original: ClipModel, edited: ClipModel, towers: Collection[Tower]
) -> Measured:
    """See `tasks.families.FamilyTasks.measured`; what is shown are a few retrievals, in ids."""
    from gates.metrics import measure as rates_and_drops

    classes = classes_by_axis(plan, folder)
    parts = select(plan, folder, {axis: known.known for axis, known in classes.items()})
    rows, pixels = measured_rows(parts, folder, original.image_size)
    before = Features(original.encode_images(pixels), class_embeddings_by_axis(original, classes))
    after = features_after(edited, before, pixels, classes, towers)
    table = outcomes_of_both(before, after, rows, parts, classes, plan)
    scores = {"before": before.scores(plan.axis), "after": after.scores(plan.axis)}
    own = rows[~rows["id"].isin(parts.cross["id"])]
    return Measured(
        rates_and_drops(table, seed=plan.seed), table, _retrievals(scores, own, classes[plan.axis], plan)
    )


def measured_rows(parts: Parts, folder: Path, size: int) -> tuple[pd.DataFrame, Any]:
    """Every item that some part holds, once, and its pixels (N, size, size, 3)."""
    import numpy as np
    import pandas as pd

    from data.reader import load_images

    held = pd.concat([parts.forget, parts.neighbours, parts.retained]).drop_duplicates("id")
    stands = [("holdout", held), ("control", parts.control), ("cross", parts.cross)]
    pixels = [load_images(folder / role, part, size) for role, part in stands if len(part)]
    return pd.concat([part for _, part in stands], ignore_index=True), np.concatenate(pixels)


def class_embeddings_by_axis(model: ClipModel, classes: Mapping[Axis, Classes]) -> dict[Axis, Tensor]:
    """Class embeddings (C, D) of every axis, with all templates of the verdict."""
    from unlearning.zero_shot import class_embeddings

    return {axis: class_embeddings(model, known.names, known.templates) for axis, known in classes.items()}


def features_after(
    edited: ClipModel,
    before: Features,
    pixels: Any,
    classes: Mapping[Axis, Classes],
    towers: Collection[Tower],
) -> Features:
    """The edited model's features; those of a tower with no edited tensor are the original's, exactly."""
    return Features(
        edited.encode_images(pixels) if "vision" in towers else before.images,
        class_embeddings_by_axis(edited, classes) if "text" in towers else before.classes,
    )


def outcomes_of_both(
    before: Features,
    after: Features,
    rows: pd.DataFrame,
    parts: Parts,
    classes: Mapping[Axis, Classes],
    plan: Plan,
) -> pd.DataFrame:
    """The item-level table (see `gates.outcomes`) of the original and the edited model."""
    import pandas as pd

    states = {"before": before, "after": after}
    tables = [outcomes(told, rows, parts, classes, plan, state) for state, told in states.items()]
    return pd.concat(tables, ignore_index=True)


def _retrievals(
    states: dict[str, Tensor], rows: pd.DataFrame, classes: Classes, plan: Plan
) -> list[dict[str, Any]]:
    """First answers for a few targets, a neighbour and a retained concept; item ids and class ids only."""
    drawn = rows[rows["view"] == 0].reset_index()
    retained = [i for i in drawn[plan.axis] if i in classes.known and i not in plan.targets]
    asked = [*plan.targets[:3], *plan.neighbours[:1], *[i for i in retained if i not in plan.neighbours][:1]]
    found: list[dict[str, Any]] = []
    for label in asked:
        own = drawn[drawn[plan.axis] == label]
        if own.empty:
            continue
        query = own.iloc[0]
        found.append(
            {
                "kind": "i2t",
                "query": label,
                "item": query["id"],
                **{s: _top(scores[int(query["index"])], list(classes.ids)) for s, scores in states.items()},
            }
        )
    for label in asked[:3]:
        column = classes.place(label)
        where = drawn["index"].tolist()
        found.append(
            {
                "kind": "t2i",
                "query": label,
                **{s: _top(scores[where, column], drawn["id"].tolist()) for s, scores in states.items()},
            }
        )
    return found


def _top(scores: Tensor, ids: list[str]) -> list[tuple[str, float]]:
    best = scores.topk(min(SHOWN, len(ids)))
    return [(ids[i], round(float(v), 4)) for v, i in zip(best.values, best.indices, strict=True)]
