"""The search split of a request to a text-to-image model: prompts, and what a judge says of their pictures.

A picture is drawn, always from the same noise, and *shows* its concept while an independent judge finds it
among its first `forget_at` classes; one to keep counts while both thing and hand are named first: the verdict
asks for both.  The judge owes nothing to the model that is edited; the same net, on other prompts, words
and noise, gives the verdict (`tasks.families.diffusion`).  Nothing of a picture can be kept from before the
edited stage, as every denoising step reads the text: a view of any stage draws anew.

Shapes: n pictures asked for, P prompts, C classes, D classes of the other axis.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Method, Tower
from unlearning.drawing import draw
from unlearning.families.diffusion import DiffusionModel, tower_of
from unlearning.forgetting import Forgetting, mean_if
from unlearning.labels import rows_of

if TYPE_CHECKING:
    from unlearning.families.diffusion_request import DiffusionRequest

# Parts of the prompts to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 3


@dataclass(frozen=True, eq=False)
class Judged:
    """What the judge says of P pictures: logits (P, C) on the axis of the request, (P, D) on the other."""

    own: Tensor
    other: Tensor

    def __getitem__(self, rows: Tensor) -> "Judged":
        return Judged(self.own[rows], self.other[rows])


Judging = Callable[[NDArray[np.uint8]], Judged]
"""Of pictures (P, S, S, 3)."""


@dataclass(frozen=True, eq=False, repr=False)
class Prompts:
    """Pictures to draw: P prompts, the seeds of their noise, and the class that each prompt names.

    Attributes:
        texts: P prompts.
        seeds: P numbers.
        labels: (P,) classes on the axis of the request.
        others: (P,) classes on the other axis.

    Raises:
        InputError: sizes contradict each other, or there are none.
    """

    texts: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: NDArray[np.int64]
    others: NDArray[np.int64]

    def __post_init__(self) -> None:
        sizes = len(self.texts), len(self.seeds), len(self.labels), len(self.others)
        if len(set(sizes)) > 1 or not self.texts:
            raise InputError(
                "{} prompts, {} seeds, {} labels and {} of the other axis do not make a set".format(*sizes)
            )


class DiffusionSplit:
    """Prompts, and what the judge says of their pictures under the weights at construction.

    Raises:
        ModelError: a picture is not finite.
    """

    def __init__(self, model: DiffusionModel, request: "DiffusionRequest", method: Method) -> None:
        self.model, self.method, self._request = model, method, request
        self.labels = torch.as_tensor(request.search.labels)
        self._others = torch.as_tensor(request.search.others)
        self.kept_rows = torch.nonzero(~torch.isin(self.labels, torch.tensor(request.targets))).flatten()
        self.known = self.judged(torch.arange(len(self.labels)))

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight; each is one stage, see above."""
        return tower_of(layer), 0

    def view(self, stages: Mapping[Tower, int], before: Any = None) -> "DiffusionView":
        """The split, ready for edits of the given towers; of none, everything is known already."""
        return DiffusionView(self, known=not stages)

    def judged(self, rows: Tensor) -> Judged:
        """What the judge says of pictures drawn anew for the prompts `rows` (n,).

        Raises:
            ModelError: a picture is not finite.
        """
        search = self._request.search
        pictures = draw(
            self.model,
            [search.texts[row] for row in rows.tolist()],
            [search.seeds[row] for row in rows.tolist()],
            steps=self._request.steps,
            micro_batch=self.method.micro_batch,
        )
        return self._request.judging(pictures)

    def hits(self, judged: Judged, rows: Tensor) -> Tensor:
        """(n,) whether the pictures of the prompts `rows` (n,) are named first what both axes say."""
        of_own, of_other = margins(judged.own, self.labels[rows]), margins(judged.other, self._others[rows])
        return (of_own > 0) & (of_other > 0)


class DiffusionView:
    """The search split under the weights of the moment, or as it was where everything is known."""

    def __init__(self, split: DiffusionSplit, known: bool) -> None:
        self._split, self._known = split, known

    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """Which of the targets' pictures still show them; always exact."""
        rows = rows_of(self._split.labels, targets)
        judged = self._judged(rows)
        return None if judged is None else self._forgetting(judged.own, rows, targets)

    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting`, and the share of the pictures to keep that show what they should."""
        rows = rows_of(self._split.labels, targets)
        judged = self._judged(torch.arange(len(self._split.labels)))
        if judged is None:
            return None
        kept = self._split.kept_rows
        shown = self._split.hits(judged[kept], kept).double().mean()
        return self._forgetting(judged.own[rows], rows, targets), float(shown)

    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """Share of the pictures to keep that show what they should; None once it is not `enough`."""
        kept = self._split.kept_rows
        parts = [kept[start::LOOKS] for start in range(min(LOOKS, len(kept)))]
        return mean_if(map(self._hits, parts), len(kept), enough)

    def _hits(self, rows: Tensor) -> Tensor | None:
        """Which pictures of the prompts `rows` show what they should; None if one is not finite."""
        judged = self._judged(rows)
        return None if judged is None else self._split.hits(judged, rows)

    def _judged(self, rows: Tensor) -> Judged | None:
        if self._known:
            return self._split.known[rows]
        try:
            return self._split.judged(rows)
        except ModelError:
            return None

    def _forgetting(self, logits: Tensor, rows: Tensor, targets: Sequence[int]) -> Forgetting:
        method, labels = self._split.method, self._split.labels[rows]
        found = margins(logits, labels, method.forget_at)
        return Forgetting.of(found, margins(logits, labels), labels, targets, method.forget_target)


def margins(logits: Tensor, labels: Tensor, at: int = 1) -> Tensor:
    """(P,) by how much the logit of the label exceeds the `at`-th largest of the others."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own[:, 0] - others.topk(at, dim=1).values[:, -1]
