"""Gradient ascent on the forget loss, over all weights (Thudi et al., arXiv 2109.13398).

    step     w <- AdamW(w, -grad of the forget loss of a forget batch)

The forget loss of a CLIP model is SLUG's, mean of 1 - cos: what the paper's comparison ascends too.  Models
of other families ascend what their request's forget gradient does, over the whole forget set in each step.
Nothing holds the rest of the model in place but the early stop of `training`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from contracts.canonical import from_plain
from contracts.values import Method
from unlearning.attempts import check_profile, trainable, unprofiled
from unlearning.families import ANY, Editable, Progress, Request
from unlearning.objectives import forget_loss
from unlearning.request import Outcome, Profile, UnlearnInputs
from unlearning.training import Budget, train
from unlearning.training_batches import Batches, WholeSets

FAMILIES = ANY


@dataclass(frozen=True)
class Options(Budget):
    """The training budget, nothing else."""


def profile(model: Editable, inputs: Request, method: Method, progress: Progress) -> Profile:
    """No layer is scored."""
    return unprofiled(inputs)


def edit(model: Any, inputs: Request, method: Method, profile: Profile, progress: Progress) -> Outcome:
    """Train with every learning rate, choose, and edit the model in place; step size: see `train`.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: every learning rate breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    if isinstance(inputs, UnlearnInputs):
        batches = partial(Batches, model, inputs, options.batch)
        return train(model, inputs, method, options, batches, _loss, profile, progress)
    whole = partial(WholeSets, model, inputs, method, trainable(model, method.towers))
    return train(model, inputs, method, options, whole, _away, profile, progress)


def _loss(batches: Batches) -> Tensor:
    pairs = batches.forget()
    return -forget_loss(pairs.image, pairs.text)


def _away(sets: WholeSets) -> Tensor:
    return -sets.ascended()
