"""Measure: what the original and the edited model say about every held-out item."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Candidate, Measurements, ModelHandle, Plan, Tower
from tasks.inputs import Classes, read_classes
from tasks.run import Run
from tasks.selection import Parts, select

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from unlearning.families.clip import ClipModel
    from unlearning.zero_shot import Ties

OUTCOMES_FILE = "outcomes.parquet"
RETRIEVALS_FILE = "retrievals.json"
SHOWN = 5
# part -> group of the outcome table, and the reading of a tie that is worse for us.
GROUPS: dict[str, tuple[str, Ties]] = {
    "forget": ("forget", "best"),
    "neighbours": ("neighbour", "worst"),
    "retained": ("retain", "worst"),
    "control": ("control", "best"),
}


@dataclass(frozen=True, eq=False)
class Features:
    """Image features (N, D) of the rows that are measured, and class embeddings (C, D)."""

    images: Tensor
    classes: Tensor

    def scores(self) -> Tensor:
        """Cosine of every image with every class, (N, C)."""
        return self.images @ self.classes.T


@task(name="measure", cache_policy=NO_CACHE)
def measure(run: Run, plan: Plan, base: ModelHandle, candidate: Candidate) -> Measurements:
    """All rates and drops; item-level outcomes and a few retrievals stay in the run folder.

    Raises:
        ModelError: a model gives features that are not finite.
        SetError, DigestMismatch: an image is missing, changed or not decodable.
        EvidenceError: the outcomes contradict each other.
    """
    import pandas as pd

    from gates.metrics import measure as rates_and_drops
    from unlearning.determinism import deterministic
    from unlearning.families.clip import ClipModel

    folder = Path(run.folder)
    classes = read_classes(folder, plan.axis)
    parts = select(plan, folder, classes.known)
    with deterministic(plan.seed, plan.threads):
        original = ClipModel.load(Path(base.folder), plan.device)
        rows, pixels = _measured_rows(parts, folder, original.image_size)
        before = Features(original.encode_images(pixels), _class_embeddings(original, classes))
        edited = ClipModel.load(Path(candidate.folder), plan.device)
        after = _after(edited, before, pixels, classes, {e.tower for e in candidate.edits})
        states = {"before": before.scores(), "after": after.scores()}
        table = pd.concat(
            [_outcomes(scores, rows, parts, classes, plan, state) for state, scores in states.items()],
            ignore_index=True,
        )
    table.to_parquet(folder / OUTCOMES_FILE, index=False)
    _write_retrievals(states, rows, classes, plan, folder / RETRIEVALS_FILE)
    return rates_and_drops(table, seed=plan.seed)


def _measured_rows(parts: Parts, folder: Path, size: int) -> tuple[pd.DataFrame, Any]:
    """Every item that some part holds, once, and its pixels (N, size, size, 3)."""
    import numpy as np
    import pandas as pd

    from data.reader import load_images

    held = pd.concat([parts.forget, parts.neighbours, parts.retained]).drop_duplicates("id")
    pixels = [
        load_images(folder / role, part, size)
        for role, part in (("holdout", held), ("control", parts.control))
    ]
    return pd.concat([held, parts.control], ignore_index=True), np.concatenate(pixels)


def _class_embeddings(model: ClipModel, classes: Classes) -> Tensor:
    from unlearning.zero_shot import class_embeddings

    return class_embeddings(model, classes.names, classes.templates)


def _after(
    edited: ClipModel, before: Features, pixels: Any, classes: Classes, towers: set[Tower]
) -> Features:
    """The edited model's features; those of a tower with no edited tensor are the original's, exactly."""
    return Features(
        edited.encode_images(pixels) if "vision" in towers else before.images,
        _class_embeddings(edited, classes) if "text" in towers else before.classes,
    )


def _outcomes(
    scores: Tensor, rows: pd.DataFrame, parts: Parts, classes: Classes, plan: Plan, state: str
) -> pd.DataFrame:
    """The item-level table (see `gates.outcomes`) of one state, image to text and text to image."""
    import pandas as pd
    import torch

    from unlearning.zero_shot import classification_ranks, retrieval_ranks

    place = dict(zip(rows["id"], range(len(rows)), strict=True))
    index = {label: i for i, label in enumerate(classes.ids)}
    tables = []
    for part, (group, ties) in GROUPS.items():
        own: pd.DataFrame = getattr(parts, part)
        if own.empty:
            continue
        where = torch.tensor([place[i] for i in own["id"]])
        labels = torch.tensor([index[label] for label in own[plan.axis]])
        ranks = classification_ranks(scores[where], labels, ties)
        tables.append(_rows(own["id"], own["source"], group, own[plan.axis], "i2t", state, ranks.tolist()))
    drawn = rows.index[rows[plan.axis].isin(classes.known - set(plan.erased_before)) & (rows["view"] == 0)]
    gallery = torch.tensor(drawn.tolist())
    labels = torch.tensor([index[label] for label in rows.loc[drawn, plan.axis]])
    present = set(rows.loc[drawn, plan.axis])
    for group, ids, ties in (
        ("forget", [t for t in plan.targets if t in present], GROUPS["forget"][1]),
        ("retain", sorted(present - set(plan.targets)), GROUPS["retained"][1]),
    ):
        asked = torch.tensor([index[i] for i in ids])
        ranks = retrieval_ranks(scores[gallery], labels, asked, ties)
        tables.append(_rows(ids, ids, group, ids, "t2i", state, ranks.tolist()))
    return pd.concat(tables, ignore_index=True)


def _rows(
    items: Any, clusters: Any, group: str, concepts: Any, direction: str, state: str, ranks: list[int]
) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "item": list(items),
            "cluster": list(clusters),
            "group": group,
            "concept": list(concepts),
            "direction": direction,
            "state": state,
            "rank": ranks,
        }
    )


def _write_retrievals(
    states: dict[str, Tensor], rows: pd.DataFrame, classes: Classes, plan: Plan, path: Path
) -> None:
    """First answers for a few targets, a neighbour and a retained concept; item ids and class ids only."""
    drawn = rows[rows["view"] == 0].reset_index()
    retained = [i for i in drawn[plan.axis] if i in classes.known and i not in plan.targets]
    asked = [*plan.targets[:3], *plan.neighbours[:1], *[i for i in retained if i not in plan.neighbours][:1]]
    found = []
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
    path.write_text(json.dumps(found), encoding="utf-8")


def _top(scores: Tensor, ids: list[str]) -> list[tuple[str, float]]:
    best = scores.topk(min(SHOWN, len(ids)))
    return [(ids[i], round(float(v), 4)) for v, i in zip(best.values, best.indices, strict=True)]
