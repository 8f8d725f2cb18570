"""The search split of a request to a vision-language model: questions about images, re-asked after each edit.

An item is *known* while the answer about its image, decoded greedily, contains its name
(`unlearning.naming`); with `forget_at` above 1 also while each token of the name is among the `forget_at`
likeliest, all text before it given.

Shapes: n images asked for, N images of the split, T image tokens, C channels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from contracts.errors import ModelError
from contracts.values import Method, Tower
from unlearning.families import earliest
from unlearning.families.staged_tower import Batch
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import name_loss
from unlearning.families.vlm_decoder import AnswerTask
from unlearning.forgetting import Forgetting, mean_if
from unlearning.labels import rows_of
from unlearning.naming import NAMED, Names
from unlearning.request import UnlearnInputs
from unlearning.resumable_pass import Entering, ResumablePass

# Sign of a margin whose size is unknown: far below any logit difference that means something.
SURE = 1e-6
# Parts of the items to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 8


class AnswerSplit:
    """The search split as questions: how often answers contain the names, after each edit.

    The margin of an item is that of its name's tokens in the given answer, and so continuous in the
    weights; where decoding decides otherwise, for another wording, it is `SURE` with decoding's sign.
    `score` of a `Forgetting` is here the likelihood of a token of the name, geometric mean over an item's
    tokens, mean over items.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: VlmModel,
        inputs: UnlearnInputs,
        method: Method,
        task: AnswerTask,
        layers: Collection[str] = (),
    ) -> None:
        self.model, self.method, self.task = model, method, task
        self.labels, self.targets = torch.as_tensor(inputs.search_labels), torch.tensor(inputs.targets)
        self.class_names, self.names = inputs.class_names, Names(inputs.class_names)
        first_edit = min(earliest(self, layers).get("vision", 0), model.reader.cut)
        images = model.image_batches(inputs.search_images)
        self._pass = ResumablePass(model.staged("vision"), images, method.micro_batch, first_edit)
        whole = AnswerView(self, self._pass.upto(first_edit))
        self.features = whole.features(torch.arange(len(self.labels)))
        self.kept_rows = torch.nonzero(~torch.isin(self.labels, self.targets)).flatten()

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight, and the stage in it that uses the weight; the decoder is one stage.

        Raises:
            ModelError: the weight is in no stage of the vision tower, and not in the decoder.
        """
        if layer.startswith("decoder."):
            return "language", 0
        return "vision", self.model.staged("vision").stage_of(layer)

    def view(self, stages: Mapping[Tower, int], before: "AnswerView | None" = None) -> "AnswerView":
        """The split, ready for edits at or after the given stage of the vision tower, and of the decoder.

        Raises:
            ModelError: no answer depends on that stage.
        """
        if "vision" not in stages:
            return AnswerView(self, None)
        stage = stages["vision"]
        if stage >= self.model.reader.cut:
            raise ModelError("a direction is in a layer behind the one that the language model reads")
        return AnswerView(self, self._pass.upto(stage, None if before is None else before.entering))


class AnswerView:
    """The questions, asked by the decoder of the moment: of features from some stage on, or as they were."""

    def __init__(self, split: AnswerSplit, entering: Entering[list[Batch]] | None) -> None:
        self._split, self.entering = split, entering

    @torch.no_grad()
    def features(self, rows: Tensor) -> Tensor:
        """(n, T, C) what the projector reads of the images `rows` (n,), which must be ascending."""
        split, entering = self._split, self.entering
        if entering is None:
            known: Tensor = split.features[rows.to(split.features.device)]
            return known
        keep = torch.zeros(len(split.labels), dtype=torch.bool)
        keep[rows] = True
        # There is one batch, of all rows in order: what is left of it is in the order of `rows`.
        taken = [batch.take(keep[batch.rows]) for batch in entering.activations]
        batches = [Batch(torch.arange(len(rows)), batch.own) for batch in taken]
        return split.model.reader.features(batches, entering.stage, len(rows), split.method.micro_batch)

    @torch.no_grad()
    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """How well the targets are named now; None if a feature is not finite."""
        split = self._split
        rows = rows_of(split.labels, targets)
        features = self.features(rows)
        if not bool(torch.isfinite(features).all()):
            return None
        labels = split.labels[rows]
        depth, names = split.method.forget_at, [split.class_names[i] for i in labels]
        parts = [
            name_loss(split.model, features[part], [names[i] for i in part], split.task, depth)
            for part in torch.split(torch.arange(len(rows)), split.method.micro_batch)
        ]
        loss = torch.cat([part.loss for part in parts]).cpu()
        margins = torch.cat([part.margin for part in parts]).cpu().double()
        if not bool(torch.isfinite(loss).all() and torch.isfinite(margins).all()):
            return None
        named = self._named(features, rows)
        # Deeper, a name that is not said may still be near at hand: then decoding does not acquit.
        unsaid = margins.clamp(max=-SURE) if depth == 1 else margins
        margins = torch.where(named, margins.clamp(min=SURE), unsaid)
        likely = (-loss.double()).exp()
        return Forgetting.of(margins, likely, labels, targets, split.method.forget_target)

    @torch.no_grad()
    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting(targets)` and the share of kept items that are named; None if not finite."""
        known = self.forgetting(targets)
        return None if known is None else (known, self.retained_rate_if(lambda rate: True) or 0.0)

    @torch.no_grad()
    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """Share of kept items that are named; None if, before a part is asked, it cannot be `enough`."""
        kept = self._split.kept_rows
        parts = torch.split(kept, -(-len(kept) // LOOKS))
        return mean_if(map(self._named_of, parts), len(kept), enough)

    def _named_of(self, rows: Tensor) -> Tensor | None:
        """`_named` of the images `rows` (n,); None if a feature is not finite."""
        features = self.features(rows)
        return self._named(features, rows) if bool(torch.isfinite(features).all()) else None

    def _named(self, features: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether the answer about each image contains its name."""
        split = self._split
        questions = [split.task.question] * len(rows)
        answers = split.model.answers_to(features, questions, split.method.micro_batch)
        ranks = split.names.ranks(answers, split.labels[rows].tolist())
        return torch.tensor(ranks) == NAMED
