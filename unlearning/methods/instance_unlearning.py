"""Forgetting images by training, for restorers: after "Learning to Unlearn" (Cha et al., arXiv 2301.11578).

That method forgets instances of a classifier by ascending their loss, and holds the rest in place with
adversarial examples made of them; "Accurate Forgetting for All-in-One Image Restoration Model" (Su and
Zheng, arXiv 2409.00685) carries it over to restorers.  Its tables and equations are not available: this is
a re-implementation of the idea.  Carried over here:

    forget       "ascent" on the L1 between output and clean image, or "identity": descent on the L1 between
                 output and degraded input (relabelling, bounded, ends at the input's level)
    distance     of "identity": "l1", or "log-mse", 0.1 ln(mean square + 1e-4), image by image.  In decibels
                 an image that hardly rains counts as much as one in a downpour
    protect      "adversarial": images made once, before anything is trained, from the forget images by PGD
                 that drives the original model's output towards the degraded input; the model is to go on
                 answering them as the original did.  "random" is the control: in place of PGD's perturbation
                 a random one of the same norm, image by image.  "retained": pairs of the retain set.
                 "answers": the retained images, to be answered as the original did.  "none"
    importance   times half the squared change of every weight, weighted by one minus its MAS importance for
                 the forget images (mean |d||f(x)|| / d weight|, scaled to 0..1 within a tensor)

Trained like all baselines (`unlearning.training`): a stop check after each step, learning rates from a grid;
"identity" may also run its whole schedule, as it has nothing to overshoot.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from unlearning.adversarial import attack, random_like
from unlearning.attempts import check_profile, trainable, unprofiled
from unlearning.families import Progress
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_request import RestorationRequest
from unlearning.families.restoration_split import mean_squares
from unlearning.inplace import requiring_grad
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile
from unlearning.training import Budget, train

FAMILIES = ("restoration",)


@dataclass(frozen=True)
class Options(Budget):
    """What is descended.

    learning_rates, steps, batch: smaller than for a CLIP, whose images are smaller.
    weight: of the protecting term.
    importance: of the anchoring term; 0 leaves it out.
    attack_steps, radius: of PGD; the radius is a root mean square over pixels, in 0..1.
    visible: gain in dB over the input above which a search image counts as known; None: the request's own.

    Raises:
        InputError: an option is out of its range.
    """

    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    batch: int = 8
    weight_decay: float = 0.0
    forget: Literal["ascent", "identity"] = "ascent"
    distance: Literal["l1", "log-mse"] = "l1"
    protect: Literal["adversarial", "random", "retained", "answers", "none"] = "adversarial"
    weight: float = 1.0
    importance: float = 0.0
    attack_steps: int = 20
    radius: float = 0.07
    visible: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "weight", "importance", "radius", "visible", at_least=0)
        check_numbers(self, "attack_steps", at_least=1)
        if self.forget == "ascent" and (self.distance, self.schedule) != ("l1", "stop"):
            raise InputError("ascent has no end: it takes the distance l1 and the schedule stop")


def profile(
    model: RestorationModel, inputs: RestorationRequest, method: Method, progress: Progress
) -> Profile:
    """No layer is scored."""
    return unprofiled(inputs)


def edit(
    model: RestorationModel,
    inputs: RestorationRequest,
    method: Method,
    profile: Profile,
    progress: Progress,
) -> Outcome:
    """Train with every learning rate, choose, and edit the model in place; step size: see `training.train`.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: every learning rate breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    names = trainable(model, method.towers)
    forget = _Images(model.preprocess(inputs.forget.degraded), model.preprocess(inputs.forget.clean))
    protected = _protected(model, inputs, forget, options, method.micro_batch, progress)
    anchors = _anchors(model, forget.shown, names) if options.importance else {}
    originals = {name: model.parameters[name].detach().clone() for name in anchors}

    def loss(batches: "_Batches") -> Tensor:
        shown, clean = batches.forget()
        restored = model.forward(shown)
        if options.forget == "ascent":
            total = -functional.l1_loss(restored, clean)
        else:
            total = _distance(restored, shown, options.distance)
        if protected is not None and options.weight:
            shown, wanted = batches.protected()
            total = total + options.weight * functional.l1_loss(model.forward(shown), wanted)
        for name, anchor in anchors.items():
            moved = (model.parameters[name] - originals[name]).square()
            total = total + 0.5 * options.importance * (anchor * moved).sum()
        return total

    batches = partial(_Batches, forget, protected, options.batch, inputs.seed)
    judged = inputs if options.visible is None else replace(inputs, visible=options.visible)
    return train(model, judged, method, options, batches, loss, profile, progress)


@dataclass(frozen=True, eq=False, repr=False)
class _Images:
    """Images (N, 3, H, W) in 0..1 and what is wanted in their place."""

    shown: Tensor
    wanted: Tensor


class _Batches:
    """Seeded batches, in a new order each time a set is through."""

    def __init__(self, forget: _Images, protected: _Images | None, batch: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._batch = batch
        self._sets = {"forget": forget, "protected": protected}
        self._waiting: dict[str, list[Tensor]] = {}

    def forget(self) -> tuple[Tensor, Tensor]:
        """Degraded and clean images of the forget set."""
        return self._next("forget")

    def protected(self) -> tuple[Tensor, Tensor]:
        """Images that must be answered as they are told."""
        return self._next("protected")

    def _next(self, which: str) -> tuple[Tensor, Tensor]:
        images = self._sets[which]
        assert images is not None
        if not self._waiting.get(which):
            order = torch.randperm(len(images.shown), generator=self._generator)
            self._waiting[which] = list(torch.split(order, self._batch))
        rows = self._waiting[which].pop(0)
        return images.shown[rows], images.wanted[rows]


def _protected(
    model: RestorationModel,
    inputs: RestorationRequest,
    forget: _Images,
    options: Options,
    micro_batch: int,
    progress: Progress,
) -> _Images | None:
    """What holds the rest in place; made under the original weights."""
    if options.protect == "none":
        return None
    if options.protect == "retained":
        return _Images(model.preprocess(inputs.retain.degraded), model.preprocess(inputs.retain.clean))
    if options.protect == "answers":
        retained = model.preprocess(inputs.retain.degraded)
        return _Images(retained, _answers(model, retained, micro_batch))
    shown = []
    generator = torch.Generator().manual_seed(inputs.seed)
    pieces = torch.split(forget.shown, micro_batch)
    for done, images in enumerate(pieces, start=1):
        attacked = attack(model, images, options.radius, options.attack_steps)
        if options.protect == "random":
            attacked = random_like(images, attacked, generator)
        shown.append(attacked)
        progress("adversarial images", done, len(pieces))
    made = torch.cat(shown)
    return _Images(made, _answers(model, made, micro_batch))


@torch.no_grad()
def _answers(model: RestorationModel, images: Tensor, micro_batch: int) -> Tensor:
    return torch.cat([model.forward(piece) for piece in torch.split(images, micro_batch)])


def _distance(restored: Tensor, wanted: Tensor, distance: str) -> Tensor:
    """Scalar, mean over images (N, 3, H, W)."""
    if distance == "l1":
        return functional.l1_loss(restored, wanted)
    squares = mean_squares(restored, wanted)
    # What is below 1e-4, 40 dB, is nothing to anybody; without a floor the best image would drive the step.
    return 0.1 * (squares + 1e-4).log().mean()


def _anchors(model: RestorationModel, images: Tensor, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """1 - importance of every weight for these images, in 0..1 (MAS: Aljundi et al., arXiv 1711.09601).

    A tensor with the same importance everywhere is left out: there is nothing to scale.
    """
    total = {name: torch.zeros_like(model.parameters[name]) for name in names}
    with requiring_grad(model.net, names):
        for image in torch.split(images, 1):
            norm = torch.linalg.vector_norm(model.forward(image))
            grads = torch.autograd.grad(norm, [model.parameters[name] for name in names], allow_unused=True)
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:
                    total[name] += grad.abs() / len(images)
    return {
        name: 1 - (found - found.min()) / (found.max() - found.min())
        for name, found in total.items()
        if bool(found.max() > found.min())
    }
