"""Fine-tuning on the retain set alone: the baseline that hopes the concept fades by itself.

    step     w <- AdamW(w, grad of the contrastive loss of a retain batch)

The forget set is not read.  With the stop check of `training` it is a control as much as a
baseline: what it loses or forgets is what optimiser steps do by themselves.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from contracts.canonical import from_plain
from contracts.values import Method
from unlearning.attempts import check_profile, unprofiled
from unlearning.families.clip import ClipModel
from unlearning.objectives import retain_loss
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.training import Budget, train
from unlearning.training_batches import Batches


@dataclass(frozen=True)
class Options(Budget):
    """The training budget, nothing else."""


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """No layer is scored."""
    return unprofiled(inputs)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Train with every learning rate, choose, and edit the model in place; step size: see `train`.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: every learning rate breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    batches = partial(Batches, model, inputs, options.batch)
    return train(model, inputs, method, options, batches, _loss, profile, progress)


def _loss(batches: Batches) -> Tensor:
    pairs = batches.retain()
    return retain_loss(pairs.image, pairs.text, batches.logit_scale)
