"""What the requests are judged on: pixels read once per request, the base model asked once.

`tasks.families.clip_measure.measured` reads and encodes everything anew, which is right for one
candidate and too slow for twenty.  The steps are its own, taken once for all of them (a test compares
the figures).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts.values import Axis, Measurements, Plan, Rate, Tower
from tasks.families.clip_inputs import Classes, classes_by_axis
from tasks.families.clip_measure import (
    Features,
    class_embeddings_by_axis,
    features_after,
    measured_rows,
    outcomes_of_both,
)
from tasks.families.clip_selection import Parts, select

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from unlearning.families.clip import ClipModel


@dataclass(frozen=True, eq=False)
class Holdout:
    """Held-out items of one request.

    Attributes:
        plan: axis, targets, neighbours.
        classes: the zero-shot task of either axis.
        parts: which items play which part.
        rows: the N items that some part holds, each once.
        pixels: (N, S, S, 3) of `rows`.
        before: what the base model says of them.
    """

    plan: Plan
    classes: Mapping[Axis, Classes]
    parts: Parts
    rows: "pd.DataFrame"
    pixels: NDArray[np.uint8]
    before: Features

    @classmethod
    def read(cls, plan: Plan, folder: Path, base: "ClipModel") -> "Holdout":
        """Read the items of a request from a folder with one sub-folder per set role.

        Raises:
            SetError, DigestMismatch: see `clip_selection.select` and `data.reader.load_images`.
        """
        classes = classes_by_axis(plan, folder)
        parts = select(plan, folder, {axis: known.known for axis, known in classes.items()})
        rows, pixels = measured_rows(parts, folder, base.image_size)
        before = Features(base.encode_images(pixels), class_embeddings_by_axis(base, classes))
        return cls(plan, classes, parts, rows, pixels, before)

    def features(self, model: "ClipModel", towers: Collection[Tower]) -> Features:
        """What a model says that differs from the base in these towers only."""
        return features_after(model, self.before, self.pixels, self.classes, towers)

    def figures(self, after: Features) -> Measurements:
        """Every rate and drop, with the bounds that gates use."""
        from gates.metrics import measure

        table = outcomes_of_both(self.before, after, self.rows, self.parts, self.classes, self.plan)
        return measure(table, seed=self.plan.seed)

    def accuracy(self, model: "ClipModel", part: str, k: int = 1) -> Rate:
        """FA@k of the part "forget", TA@k of "retained", asked of the model anew."""
        from gates.intervals import rate
        from unlearning.zero_shot import class_embeddings, classification_ranks

        own: pd.DataFrame = getattr(self.parts, part)
        known = self.classes[self.plan.axis]
        embedded = class_embeddings(model, known.names, known.templates)
        scores = model.encode_images(self.pixels[self.where(own)]) @ embedded.T
        labels = self.labels(own)
        ranks = classification_ranks(scores, labels, "best" if part == "forget" else "worst")
        return rate((ranks <= k).numpy(), own["source"].to_numpy(dtype=str))

    def without(self, others: Collection[str]) -> "Holdout":
        """The same but for items of these concepts, as if the base had been made to forget them before."""
        plan, axis = self.plan, self.plan.axis
        kept = {part: getattr(self.parts, part) for part in ("neighbours", "retained", "cross")}
        return replace(
            self,
            plan=replace(
                plan,
                neighbours=tuple(label for label in plan.neighbours if label not in others),
                erased_before=(*plan.erased_before, *sorted(others)),
            ),
            parts=replace(
                self.parts, **{part: rows[~rows[axis].isin(others)] for part, rows in kept.items()}
            ),
        )

    def where(self, own: "pd.DataFrame") -> NDArray[np.int64]:
        """Positions in `rows` of the items of a part, or of some of them."""
        place = dict(zip(self.rows["id"], range(len(self.rows)), strict=True))
        return np.array([place[item] for item in own["id"]], dtype=np.int64)

    def labels(self, own: "pd.DataFrame") -> "Tensor":
        """True classes (n,) of items, as places on the plan's axis."""
        import torch

        known = self.classes[self.plan.axis]
        return torch.tensor([known.place(label) for label in own[self.plan.axis]])
