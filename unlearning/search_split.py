"""The search split as a zero-shot task, re-measured after each edit without recomputing what cannot change.

For an edit in one tower the features of the other are computed once.  In the edited tower the
activations entering the edited stage are kept (`SplitView`); of the first one to be edited they come from the
pass that computes the features (`ResumablePass`).  To read the forget rate after a
text edit, the classes that stood highest for these images are encoded first: once `forget_at`
classes beat the true one for every image, the others cannot bring it back into the top.

An item is known while its **margin** is not negative: the score of its true class minus that of the
`forget_at`-th best other class.  Over the nearest classes alone the margin can only be larger, so a
step that reaches the target there reaches it; an exact measurement looks at all classes.

Shapes: n images asked for, N images in the split, C classes, T templates, D embedding width.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contracts.values import Method, Tower
from unlearning.families import earliest
from unlearning.families.clip import ClipModel, tower_of
from unlearning.families.staged_tower import Batch
from unlearning.forgetting import Forgetting, mean_if
from unlearning.labels import rows_of
from unlearning.resumable_pass import Entering, ResumablePass
from unlearning.zero_shot import classification_ranks, fill_templates, pool_templates, rate_at

if TYPE_CHECKING:
    from unlearning.request import UnlearnInputs

# Classes per image, as a multiple of forget_at, that are encoded first after a text edit.
FIRST_CLASSES = 8
# Parts of the items to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 8


class SearchSplit:
    """Images, class texts and their features under the weights at construction.

    Args:
        model: at the weights to measure edits against.
        inputs: of the request.
        method: names micro-batch and target.
        layers: that are to be edited, where they are known: a view of the first of them in a tower needs no
            pass.  What enters it is kept until a view stands further on.
    """

    @torch.no_grad()
    def __init__(
        self, model: ClipModel, inputs: "UnlearnInputs", method: Method, layers: Collection[str] = ()
    ) -> None:
        self.model, self.method = model, method
        self.labels = torch.as_tensor(inputs.search_labels)
        self.targets = torch.tensor(inputs.targets)
        self.n_classes, n_templates = len(inputs.class_names), len(inputs.templates)
        self.n_texts = n_templates * self.n_classes
        templates = torch.arange(n_templates).repeat_interleave(self.n_classes)
        texts = fill_templates(inputs.class_names, inputs.templates)
        start: dict[Tower, list[Batch]] = {
            "vision": model.image_batches(inputs.search_images),
            "text": model.text_batches(texts, templates),
        }
        first_edits = {"vision": 0, "text": 0, **earliest(self, layers)}
        self._passes = {
            tower: ResumablePass(model.staged(tower), start[tower], method.micro_batch, stage)
            for tower, stage in first_edits.items()
        }
        whole = self.view(first_edits)
        self.image_features = whole.image_features(torch.arange(len(self.labels)))
        self.class_embeddings = whole.class_embeddings(torch.arange(self.n_classes))
        kept = torch.nonzero(~torch.isin(self.labels, self.targets)).flatten()
        self.kept_rows = self._least_sure_first(kept)

    def _least_sure_first(self, rows: Tensor) -> Tensor:
        """The images `rows` by how far their own class stands above all others, wrong ones first.

        An edit gets those wrong that were wrong or nearly so: counted in this order, the most that it can
        still keep is soon too little.
        """
        scores = self.image_features[rows] @ self.class_embeddings.T
        own = self.labels[rows].to(scores.device)[:, None]
        true = scores.gather(1, own).flatten()
        margins = true - scores.scatter(1, own, -torch.inf).max(dim=1).values
        return rows[margins.argsort(stable=True).cpu()]

    def view(self, stages: Mapping[Tower, int], before: "SplitView | None" = None) -> "SplitView":
        """The split, ready for edits at or after the given stage of each named tower.

        Args:
            stages: by tower.
            before: a view at the same weights that stands earlier, to go on from in its towers.
        """
        passed = {} if before is None else before.entering
        entering = {
            tower: self._passes[tower].upto(stage, passed.get(tower)) for tower, stage in stages.items()
        }
        return SplitView(self, entering)

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight, and the stage in it that uses the weight."""
        tower = tower_of(layer)
        return tower, self.model.staged(tower).stage_of(layer)

    def nearest_first(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All classes, those that stand highest for the images `rows` (and their own) apart from the rest."""
        scores = self.image_features[rows] @ self.class_embeddings.T
        count = min(self.n_classes, FIRST_CLASSES * self.method.forget_at)
        near = torch.zeros(self.n_classes, dtype=torch.bool)
        near[scores.topk(count, dim=1).indices.flatten().cpu()] = True
        near[self.labels[rows]] = True
        return torch.nonzero(near).flatten(), torch.nonzero(~near).flatten()


class SplitView:
    """The search split from some stage on: every method measures under the weights of the moment.

    Args:
        split: that it is a view of.
        entering: by tower that may be edited, what enters the first stage that may be.
    """

    def __init__(self, split: SearchSplit, entering: Mapping[Tower, Entering[list[Batch]]]) -> None:
        self._split, self.entering = split, entering

    @torch.no_grad()
    def image_features(self, rows: Tensor) -> Tensor:
        """(n, D) features of the images `rows` (n,), which must be ascending."""
        if "vision" not in self.entering:
            known: Tensor = self._split.image_features[rows]
            return known
        keep = torch.zeros(len(self._split.labels), dtype=torch.bool)
        keep[rows] = True
        return self._features("vision", keep)[rows]

    @torch.no_grad()
    def class_embeddings(self, classes: Tensor) -> Tensor:
        """(n, D) embeddings of the classes (n,)."""
        if "text" not in self.entering:
            known: Tensor = self._split.class_embeddings[classes]
            return known
        keep = torch.zeros(self._split.n_classes, dtype=torch.bool)
        keep[classes] = True
        n_templates = self._split.n_texts // self._split.n_classes
        features = self._features("text", keep.repeat(n_templates))
        return pool_templates(features.view(n_templates, self._split.n_classes, -1)[:, classes])

    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """How well the targets are known now; None if a feature is not finite.

        Args:
            targets: classes.
            exact: False measures a text edit against the nearest classes only, which can only
                overstate what is known.
        """
        split = self._split
        rows = rows_of(split.labels, targets)
        labels = split.labels[rows]
        images = self.image_features(rows)
        near, far = (
            split.nearest_first(rows) if "text" in self.entering else (torch.arange(split.n_classes), None)
        )
        scores = images @ self.class_embeddings(near).T
        if not bool(torch.isfinite(scores).all()):
            return None
        own = torch.searchsorted(near, labels).to(scores.device)[:, None]
        true, best = scores.gather(1, own).flatten(), self._best(scores.scatter(1, own, -torch.inf))
        if exact and far is not None and len(far) and bool((true >= best[:, -1]).any()):
            scores = images @ self.class_embeddings(far).T
            if not bool(torch.isfinite(scores).all()):
                return None
            best = self._best(torch.cat([best, scores], dim=1))
        return self._forgetting(true, best, labels, targets)

    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting(targets)` and TA@1 over the items of classes to keep, in one pass over everything.

        None if a feature is not finite.
        """
        split = self._split
        images = self.image_features(torch.arange(len(split.labels)))
        scores = images @ self.class_embeddings(torch.arange(split.n_classes)).T
        if not bool(torch.isfinite(scores).all()):
            return None
        rows, labels = rows_of(split.labels, targets), split.labels.to(scores.device)
        kept = split.kept_rows
        retained = rate_at(classification_ranks(scores[kept], labels[kept], ties="worst"), 1)
        own = labels[rows][:, None]
        true = scores[rows].gather(1, own).flatten()
        best = self._best(scores[rows].scatter(1, own, -torch.inf))
        return self._forgetting(true, best, split.labels[rows], targets), retained

    def _forgetting(self, true: Tensor, best: Tensor, labels: Tensor, targets: Sequence[int]) -> Forgetting:
        """From each item's true score (n,) and its highest other scores (n, forget_at)."""
        margins = true - best[:, -1]
        return Forgetting.of(margins, true, labels, targets, self._split.method.forget_target)

    def _best(self, scores: Tensor) -> Tensor:
        """(n, forget_at) highest scores of each row, falling."""
        return scores.topk(self._split.method.forget_at, dim=1).values

    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """TA@1 over the items of classes to keep; 0 where features are not finite (nothing is classified).

        None if, before a part is counted, the most that it can be is not `enough`.
        """
        return mean_if(self._right(), len(self._split.kept_rows), enough)

    def _right(self) -> Iterator[Tensor | None]:
        """Which items to keep are classified right, part by part; None where a score is not finite."""
        split = self._split
        classes = self.class_embeddings(torch.arange(split.n_classes)).T
        for part in torch.split(split.kept_rows, -(-len(split.kept_rows) // LOOKS)):
            rows = part.sort().values
            scores = self.image_features(rows) @ classes
            if not bool(torch.isfinite(scores).all()):
                yield None
                return
            yield classification_ranks(scores, split.labels[rows].to(scores.device), ties="worst") <= 1

    def _features(self, tower: Tower, keep: Tensor) -> Tensor:
        """Features of the tower's rows where `keep` is true; other rows are zero."""
        entering = self.entering[tower]
        batches = [batch.take(keep[batch.rows]) for batch in entering.activations]
        staged = self._split.model.staged(tower)
        return staged.features(batches, entering.stage, len(keep), self._split.method.micro_batch)
