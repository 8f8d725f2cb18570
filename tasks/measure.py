"""Measure: what the original and the edited model say about every held-out item."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Axis, Candidate, Measurements, ModelHandle, Plan, Tower
from tasks.inputs import Classes, classes_by_axis
from tasks.outcomes import outcomes
from tasks.run import Run
from tasks.selection import Parts, select

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from unlearning.families.clip import ClipModel

OUTCOMES_FILE = "outcomes.parquet"
RETRIEVALS_FILE = "retrievals.json"
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Features:
    """Image features (N, D) of the rows that are measured, and class embeddings (C, D) by axis."""

    images: Tensor
    classes: Mapping[Axis, Tensor]

    def scores(self, axis: Axis) -> Tensor:
        """Cosine of every image with every class of an axis, (N, C), on the CPU like the labels."""
        return (self.images @ self.classes[axis].T).cpu()


@task(name="measure", cache_policy=NO_CACHE)
def measure(run: Run, plan: Plan, base: ModelHandle, candidate: Candidate) -> Measurements:
    """All rates and drops; item-level outcomes and a few retrievals stay in the run folder.

    Raises:
        ModelError: a model gives features that are not finite.
        SetError, DigestMismatch: an image is missing, changed or not decodable.
        EvidenceError: the outcomes contradict each other.
    """
    from unlearning.determinism import deterministic
    from unlearning.families.clip import ClipModel

    with deterministic(plan.seed, plan.threads):
        original, edited = (ClipModel.load(Path(m.folder), plan.device) for m in (base, candidate))
        found = measured(plan, Path(run.folder), original, edited, {e.tower for e in candidate.edits})
    found.outcomes.to_parquet(run.path(OUTCOMES_FILE), index=False)
    run.path(RETRIEVALS_FILE).write_text(json.dumps(found.retrievals), encoding="utf-8")
    return found.figures


@dataclass(frozen=True, eq=False)
class Measured:
    """Figures, the item-level table behind them (`gates.outcomes`), and a few retrievals in ids."""

    figures: Measurements
    outcomes: pd.DataFrame
    retrievals: list[dict[str, Any]]


def measured(
    plan: Plan, folder: Path, original: ClipModel, edited: ClipModel, towers: set[Tower]
) -> Measured:
    """Compare two models on everything held out.

    Args:
        plan: axis, targets, neighbours, what was erased before.
        folder: holds one sub-folder per set role, and the labels.
        original: the base model.
        edited: the candidate.
        towers: which of its towers hold an edited tensor.
    """
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
