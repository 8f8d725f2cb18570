"""What a vision-language model's answers say of a concept: their loss, its gradient, and a search split.

The paper (arXiv 2407.11867, section 4.3) takes gradients of the matching CLIP model's cosine loss and
counts answers that contain the name.  Without that CLIP model gradients can be taken of the answers:

    loss = mean over items, of the mean over the name's tokens, of -log p(token | image, all text before it)

Forgetting *ascends* it, as it ascends the cosine loss, so steps have the same sign.

Shapes: n images asked for, N images of the split, T image tokens, C channels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError, ModelError
from contracts.values import Method, Tower
from unlearning import distributed
from unlearning.accumulation import Gradients, GradientSum
from unlearning.encoders import FULL_PRECISION
from unlearning.families.clip import ClipModel, Images
from unlearning.families.clip_stages import Batch
from unlearning.families.vlm import VlmModel
from unlearning.inplace import requiring_grad
from unlearning.naming import NAMED, Names, with_article
from unlearning.request import UnlearnInputs
from unlearning.search_split import LOOKS, Forgetting, SearchSplit, SplitView

# Sign of a margin whose size is unknown: far below any logit difference that means something.
SURE = 1e-6


@dataclass(frozen=True)
class AnswerTask:
    """What is asked about an image, and the answer that gives a name.

    Attributes:
        question: the paper asks "What is the name of the person in the image?".
        article: whether the answer is "a bird" and not "bird".
    """

    question: str = "what is this?"
    article: bool = True

    def asked(self, model: VlmModel, name: str) -> tuple[list[int], list[bool]]:
        """Token ids of the question with its answer; those of the name count."""
        answer = with_article(name) if self.article else name
        return model.chat.answered(self.question, answer, counted=name)


@dataclass(frozen=True, eq=False)
class NameLoss:
    """How a model takes to given names.

    Attributes:
        loss: (n,) mean negative log-likelihood of the name's tokens.
        margin: (n,) by how much the logits of the name's tokens exceed the best others, at the worst token.
    """

    loss: Tensor
    margin: Tensor


def name_loss(model: VlmModel, features: Tensor, names: Sequence[str], task: AnswerTask) -> NameLoss:
    """Loss and margin of one name for each image, by the features (n, T, C); differentiable."""
    forced = model.forced(features, [task.asked(model, name) for name in names])
    each = functional.cross_entropy(forced.logits, forced.ids, reduction="none")
    own = forced.logits.gather(1, forced.ids[:, None])
    others = forced.logits.scatter(1, forced.ids[:, None], -torch.inf).amax(1)
    rows, zeros = forced.rows, each.new_zeros(len(names))
    count = zeros.index_add(0, rows, torch.ones_like(each))
    worst = zeros.new_full((len(names),), torch.inf).scatter_reduce(0, rows, own[:, 0] - others, "amin")
    return NameLoss(zeros.index_add(0, rows, each) / count, worst)


def answer_gradient(
    model: VlmModel,
    images: Images,
    names: Sequence[str],
    layers: Sequence[str],
    micro_batch: int,
    task: AnswerTask,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the mean loss of the names over all items, for the named layers.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        names: N names, each shown by its image.
        layers: weight names, of the vision tower.
        micro_batch: items at a time; decides memory, not the result.
        task: the question.
        progress: called with (items done, items).

    Raises:
        InputError: there are no items, or not as many names as images.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    n = len(images)
    if n == 0 or n != len(names):
        raise InputError(f"{n} images and {len(names)} names do not make a set of pairs")
    pixels = torch.as_tensor(images)
    total = GradientSum(model, layers, FULL_PRECISION, divisor=n)
    own = torch.arange(n)[distributed.share(n)]
    with requiring_grad(model.vision_net, layers):
        for rows in torch.split(own, micro_batch):
            if len(rows):  # fewer items than processes
                features = model.features(pixels[rows], micro_batch)
                loss = name_loss(model, features, [names[i] for i in rows], task).loss
                total.add(loss.sum() / n)
                del loss, features  # their graph, before the next one is made
                if progress is not None:
                    progress(int(rows[-1]) + 1, n)
    return total.total()


class AnswerSplit(SearchSplit):
    """The search split as questions: how often answers contain the names, after each edit of the tower.

    It stands where a `SearchSplit` does (`unlearning.stepping`).  An item is known if its answer, decoded
    greedily, contains its name (`unlearning.naming`).  The margin of a known item is that of its name's
    tokens in the given answer, and so continuous in the weights; where decoding decides otherwise, for
    another wording, it is `SURE` with decoding's sign.  `cosine` of a `Forgetting` is here the likelihood
    of a token of the name, geometric mean over an item's tokens, mean over items.
    """

    @torch.no_grad()
    def __init__(self, model: VlmModel, inputs: UnlearnInputs, method: Method, task: AnswerTask) -> None:
        self.vlm, self.method, self.task = model, method, task
        # Of the model a search uses its stages and weights, which both families have.
        self.model = cast(ClipModel, model)
        self.labels, self.targets = torch.as_tensor(inputs.search_labels), torch.tensor(inputs.targets)
        self.class_names, self.names = inputs.class_names, Names(inputs.class_names)
        self.start = {"vision": model.image_batches(inputs.search_images)}
        self.features = AnswerView(self, {"vision": 0}).features(torch.arange(len(self.labels)))
        self.kept_rows = torch.nonzero(~torch.isin(self.labels, self.targets)).flatten()

    def view(self, stages: Mapping[Tower, int], before: SplitView | None = None) -> "AnswerView":
        """The split, ready for edits at or after the given stage of the vision tower.

        Raises:
            ModelError: no answer depends on that stage.
        """
        if stages.get("vision", 0) >= self.vlm.reader.cut or "text" in stages:
            raise ModelError("a direction is in a layer behind the one that the language model reads")
        return AnswerView(self, stages, before)


class AnswerView(SplitView):
    """The questions from some stage on: every method measures under the weights of the moment."""

    _split: AnswerSplit

    @torch.no_grad()
    def features(self, rows: Tensor) -> Tensor:
        """(n, T, C) what the projector reads of the images `rows` (n,), which must be ascending."""
        split = self._split
        if "vision" not in self._stages:
            return split.features[rows.to(split.features.device)]
        keep = torch.zeros(len(split.labels), dtype=torch.bool)
        keep[rows] = True
        # There is one batch, of all rows in order: what is left of it is in the order of `rows`.
        taken = [batch.take(keep[batch.rows]) for batch in self._entering["vision"]]
        batches = [Batch(torch.arange(len(rows)), batch.own) for batch in taken]
        return split.vlm.reader.features(batches, self._stages["vision"], len(rows), split.method.micro_batch)

    @torch.no_grad()
    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """How well the targets are named now; None if a feature is not finite."""
        split = self._split
        rows = split.rows_of(targets)
        features = self.features(rows)
        if not bool(torch.isfinite(features).all()):
            return None
        labels = split.labels[rows]
        named = self._named(features, rows)
        parts = [
            name_loss(split.vlm, features[part], [split.class_names[i] for i in labels[part]], split.task)
            for part in torch.split(torch.arange(len(rows)), split.method.micro_batch)
        ]
        loss = torch.cat([part.loss for part in parts]).cpu()
        margins = torch.cat([part.margin for part in parts]).cpu()
        margins = torch.where(named, margins.clamp(min=SURE), margins.clamp(max=-SURE)).double()
        own = {t: labels == t for t in targets}
        return Forgetting(
            rates={t: float(named[mine].double().mean()) for t, mine in own.items()},
            rate=float(named.double().mean()),
            cosine=float((-loss.double()).exp().mean()),
            margin=max(self._margin(margins[mine]) for mine in own.values()),
        )

    @torch.no_grad()
    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting(targets)` and the share of kept items that are named; None if not finite."""
        known = self.forgetting(targets)
        return None if known is None else (known, self.retained_rate())

    @torch.no_grad()
    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """`retained_rate`, or None if, before a part is asked, the most that it can be is not `enough`."""
        if not enough(1.0):
            return None
        kept, right = self._split.kept_rows, 0
        left = n = len(kept)
        for rows in torch.split(kept, -(-n // LOOKS)):
            features = self.features(rows)
            if not bool(torch.isfinite(features).all()):
                return 0.0
            right, left = right + int(self._named(features, rows).sum()), left - len(rows)
            if left and not enough((right + left) / n):
                return None
        return right / n

    def _named(self, features: Tensor, rows: Tensor) -> Tensor:
        """(n,) bool: whether the answer about each image contains its name."""
        split = self._split
        questions = [split.task.question] * len(rows)
        answers = split.vlm.answers_to(features, questions, split.method.micro_batch)
        ranks = split.names.ranks(answers, split.labels[rows].tolist())
        return torch.tensor(ranks) == NAMED
