"""Training with the original as teacher, for vision-language models: after SCRUB (arXiv 2302.09880).

Kurmanji et al. drive a student away from its teacher on the forget set and hold it there on the retain set.
Carried over here, for a tower that answers are read from:

    forget     softplus(goal - loss of the name), in nats, of views of the forget images: away from the name
               as far as `goal`, and no further, so that nothing has to stop it
    names      Kullback-Leibler divergence, in nats, from what the original expects at each token of the names
               of views of retained images (`unlearning.views`): sure names stay sure, and others unsure
    features   squared change of what the language model reads, over its mean square, of these views and of
               scenes made of retained images
    answers    the divergence from the original's answers to the request's other questions about these scenes

The original's side is taken once, before anything is trained: no second model is kept.  A handful of forget
images is learnt by heart before their name is gone from unseen ones, hence the views, and hence a goal beyond
the first other answer; and names alone do not hold what else is asked, hence the scenes.  Only the later half
of the tower is trained: what its early stages see, all names share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from unlearning.attempts import check_profile, trainable, unprofiled
from unlearning.families import Progress
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import name_loss
from unlearning.families.vlm_decoder import Asked
from unlearning.families.vlm_request import VlmRequest
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile
from unlearning.training import Budget, train
from unlearning.views import scenes, varied

FAMILIES = ("vlm",)


@dataclass(frozen=True)
class Options(Budget):
    """The training budget, and what is descended.

    batch: retained views in a step, and as many scenes.
    forget_batch: forget views in a step.
    views: of retained images, and as many scenes, that the original is asked about.  Kept in memory: a view
        takes as much as what the language model reads of an image (LLaVA-1.5: 2.3 MB).
    forget, names, features, answers: weights of the terms.
    goal: nats for a token of the name.

    Raises:
        InputError: an option is out of its range.
    """

    learning_rates: tuple[float, ...] = (1e-3,)
    steps: int = 240
    batch: int = 32
    weight_decay: float = 0.0
    schedule: Literal["stop", "full"] = "full"
    forget_batch: int = 8
    views: int = 2048
    forget: float = 1.0
    names: float = 2.0
    features: float = 15.0
    answers: float = 2.0
    goal: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "forget", "names", "features", "answers", "goal", at_least=0)
        check_numbers(self, "forget_batch", at_least=1)
        if self.views < self.batch:
            raise InputError(f"views must be at least batch, {self.batch}, got {self.views}")


def profile(model: VlmModel, inputs: VlmRequest, method: Method, progress: Progress) -> Profile:
    """No layer is scored.

    Raises:
        InputError: the tower is not to be edited.
    """
    if "vision" not in method.towers:
        raise InputError("scrub trains the vision tower: towers must hold vision (--tower vision)")
    return unprofiled(inputs)


def edit(
    model: VlmModel, inputs: VlmRequest, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Train with every learning rate, choose, and edit the model in place; step size: see `training.train`.

    Raises:
        InputError: the profile is of other concepts, or no retain caption holds a name to keep.
        ModelError: every learning rate breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    teacher = _Teacher.of(model, inputs, options, method.micro_batch, progress)
    batches = partial(_Batches, model, inputs, options, teacher, method.micro_batch)
    late = _late(model)
    return train(model, inputs, method, options, batches, _Batches.loss, profile, progress, names=late)


def _late(model: VlmModel) -> list[str]:
    """The tensors that are trained: of the later half of the stages that feed the language model."""
    tower, half = model.staged("vision"), model.reader.cut // 2
    return [name for name in trainable(model, ("vision",)) if tower.stage_of(name) >= half]


@dataclass(frozen=True, eq=False, repr=False)
class _Teacher:
    """What the original makes of V views of retained images, each with a name, and of V scenes.

    Attributes:
        pictures: uint8 (2V, H, W, 3), the views first.
        features: (2V, T, C).
        named: V token ids and what counts, the question for a name with each view's own.
        asked: the same of each scene, another question with the original's answer; none where there are
            no other questions.
    """

    pictures: Tensor
    features: Tensor
    named: Sequence[Asked]
    asked: Sequence[Asked]

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: VlmModel, inputs: VlmRequest, options: Options, micro_batch: int, progress: Progress
    ) -> "_Teacher":
        generator = torch.Generator().manual_seed(inputs.seed)
        rows, names = inputs.retained
        images = torch.as_tensor(inputs.inputs.retain_images)[rows]
        drawn = torch.randint(len(images), (2, options.views), generator=generator)
        pictures = torch.cat([varied(images[drawn[0]], generator), scenes(images[drawn[1]], generator)])
        features = []
        for part in torch.split(pictures, micro_batch):
            features.append(model.features(part, micro_batch))
            progress("the original's views", min(len(features) * micro_batch, len(pictures)), len(pictures))
        known = torch.cat(features)
        asked = []
        if inputs.questions:
            which = torch.randint(len(inputs.questions), (options.views,), generator=generator)
            put = [inputs.questions[i] for i in which]
            said = model.answers_to(known[options.views :], put, micro_batch)
            asked = [model.chat.answered(*each) for each in zip(put, said, strict=True)]
        named = [inputs.task.asked(model.chat, names[i]) for i in drawn[0]]
        return cls(pictures, known, named, asked)


class _Batches:
    """Seeded batches under the weights of the moment."""

    def __init__(
        self, model: VlmModel, inputs: VlmRequest, options: Options, teacher: _Teacher, micro_batch: int
    ) -> None:
        self._model, self._task, self._options, self._teacher = model, inputs.task, options, teacher
        self._micro_batch = micro_batch
        self._generator = torch.Generator().manual_seed(inputs.seed)
        self._images = torch.as_tensor(inputs.inputs.forget_images)
        self._names = [inputs.inputs.class_names[i] for i in inputs.inputs.forget_labels]
        self._views = self._walk(options.views)
        self._scenes = self._walk(options.views)

    def loss(self) -> Tensor:
        """The weighted sum of the next batch."""
        options, teacher = self._options, self._teacher
        own = torch.randint(len(self._images), (options.forget_batch,), generator=self._generator)
        views, scenes = next(self._views), next(self._scenes)
        held = torch.cat([views, options.views + scenes])
        pictures = torch.cat([varied(self._images[own], self._generator), teacher.pictures[held]])
        features = self._model.features(pictures, self._micro_batch)
        forgotten, kept = features[: len(own)], features[len(own) :]
        before = teacher.features[held]
        named = name_loss(self._model, forgotten, [self._names[i] for i in own], self._task).loss
        total = options.forget * functional.softplus(options.goal - named).mean()
        total = total + options.features * (kept - before).square().mean() / before.square().mean()
        n = len(views)
        asked = [teacher.named[i] for i in views]
        total = total + options.names * self._divergence(kept[:n], before[:n], asked)
        if teacher.asked:
            asked = [teacher.asked[i] for i in scenes]
            total = total + options.answers * self._divergence(kept[n:], before[n:], asked)
        return total

    def _divergence(self, features: Tensor, before: Tensor, asked: Sequence[Asked]) -> Tensor:
        """Mean over the tokens that count, in nats, of the model from the original."""
        with torch.no_grad():
            wanted = self._model.forced(before, asked).logits.log_softmax(dim=1)
        said = self._model.forced(features, asked).logits.log_softmax(dim=1)
        return functional.kl_div(said, wanted, reduction="batchmean", log_target=True)

    def _walk(self, n: int) -> Iterator[Tensor]:
        """Batches of 0..n-1 in a new order each time, whole ones only."""
        batch = self._options.batch
        while True:
            order = torch.randperm(n, generator=self._generator)
            yield from torch.split(order[: n // batch * batch], batch)
