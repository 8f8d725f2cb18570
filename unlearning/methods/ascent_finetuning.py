"""Gradient ascent on the forget set with fine-tuning on the retain set ("GAFT" in the SLUG paper).

    step     w <- AdamW(w, grad of (retain loss - forget loss)), one batch of each set

The paper's code takes turns by epoch: all forget batches up, then all retain batches down.  With a
stop check after every step such a run would end before its first retain step, so the two losses
are summed, as in the negative gradient of Kurmanji et al. (arXiv 2302.09880).  Models of other families
take both whole sets in each step, by the objectives of their requests.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from contracts.canonical import from_plain
from contracts.values import Method
from unlearning.attempts import check_profile, trainable, unprofiled
from unlearning.families import ANY, Editable, Request
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
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
        return train(model, inputs, method, options, batches, loss, profile, progress)
    whole = partial(WholeSets, model, inputs, method, trainable(model, method.towers))
    return train(model, inputs, method, options, whole, _both, profile, progress)


def loss(batches: Batches) -> Tensor:
    """retain loss - forget loss of the next batches, equally weighted."""
    forget, retain = batches.forget(), batches.retain()
    kept = retain_loss(retain.image, retain.text, batches.logit_scale)
    return kept - forget_loss(forget.image, forget.text)


def _both(sets: WholeSets) -> Tensor:
    return sets.descended() - sets.ascended()
