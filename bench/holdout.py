"""What the requests are judged on: pixels read once per request, the base model asked once.

`tasks.measure.measured` reads and encodes everything anew, which is right for one candidate and too
slow for twenty.  The figures here are the same (a test compares them).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts.values import Axis, Measurements, Plan, Rate, Tower
from tasks.inputs import Classes, classes_by_axis
from tasks.measure import Features
from tasks.outcomes import outcomes
from tasks.selection import Parts, select

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
            SetError, DigestMismatch: see `tasks.selection.select` and `data.reader.load_images`.
        """
        import pandas as pd

        from data.reader import load_images

        classes = classes_by_axis(plan, folder)
        parts = select(plan, folder, {axis: known.known for axis, known in classes.items()})
        held = pd.concat([parts.forget, parts.neighbours, parts.retained]).drop_duplicates("id")
        stands = [("holdout", held), ("control", parts.control), ("cross", parts.cross)]
        pixels = np.concatenate(
            [load_images(folder / role, part, base.image_size) for role, part in stands if len(part)]
        )
        rows = pd.concat([part for _, part in stands], ignore_index=True)
        before = Features(
            base.encode_images(pixels), {axis: embed(base, known) for axis, known in classes.items()}
        )
        return cls(plan, classes, parts, rows, pixels, before)

    def features(self, model: "ClipModel", towers: Collection[Tower]) -> Features:
        """What a model says that differs from the base in these towers only."""
        return Features(
            model.encode_images(self.pixels) if "vision" in towers else self.before.images,
            {axis: embed(model, known) for axis, known in self.classes.items()}
            if "text" in towers
            else self.before.classes,
        )

    def figures(self, after: Features) -> Measurements:
        """Every rate and drop, with the bounds that gates use."""
        import pandas as pd

        from gates.metrics import measure

        states = {"before": self.before, "after": after}
        tables = [
            outcomes(told, self.rows, self.parts, self.classes, self.plan, state)
            for state, told in states.items()
        ]
        return measure(pd.concat(tables, ignore_index=True), seed=self.plan.seed)

    def accuracy(self, model: "ClipModel", part: str, k: int = 1) -> Rate:
        """FA@k of the part "forget", TA@k of "retained", asked of the model anew."""
        from gates.intervals import rate
        from unlearning.zero_shot import classification_ranks

        own: pd.DataFrame = getattr(self.parts, part)
        known = self.classes[self.plan.axis]
        scores = model.encode_images(self.pixels[self.where(own)]) @ embed(model, known).T
        labels = self.labels(own)
        ranks = classification_ranks(scores, labels, "best" if part == "forget" else "worst")
        return rate((ranks <= k).numpy(), own["source"].to_numpy(dtype=str))

    def where(self, own: "pd.DataFrame") -> NDArray[np.int64]:
        """Positions in `rows` of the items of a part, or of some of them."""
        place = dict(zip(self.rows["id"], range(len(self.rows)), strict=True))
        return np.array([place[item] for item in own["id"]], dtype=np.int64)

    def labels(self, own: "pd.DataFrame") -> "Tensor":
        """True classes (n,) of items, as places on the plan's axis."""
        import torch

        known = self.classes[self.plan.axis]
        return torch.tensor([known.place(label) for label in own[self.plan.axis]])


def embed(model: "ClipModel", known: Classes) -> "Tensor":
    """Class embeddings (C, D) with all templates of the verdict."""
    from unlearning.zero_shot import class_embeddings

    return class_embeddings(model, known.names, known.templates)
