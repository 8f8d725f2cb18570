"""SalUn: random relabelling of the forget set, on the salient half of the weights.

Fan, Liu, Zhang, Wong, Wei, Liu, arXiv 2310.12508 (ICLR 2024).

    mask     the entries with the larger half of |grad of the forget loss| at the original weights
    step     w <- AdamW(w, grad of (relabelling loss + retain loss)), masked entries only

A classifier is relabelled by drawing a wrong class.  CLIP has no classes: a forget image is given
the caption of a random retain item of the step's batch, and cross-entropy is taken over all
captions of the step, its own among the wrong ones; a new draw each step.  The threshold is the
median over all trained tensors together, as in the authors' code.

The SLUG paper compares with something else under this name: ascent + fine-tuning under the same
mask.  That is the objective "ascent".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from contracts.canonical import from_plain
from contracts.values import Method
from unlearning.attempts import check_profile, trainable, unprofiled
from unlearning.families.clip import ClipModel
from unlearning.gradients import forget_gradient
from unlearning.methods import ascent_finetuning
from unlearning.objectives import retain_loss
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs
from unlearning.training import Budget, train
from unlearning.training_batches import Batches


@dataclass(frozen=True)
class Options(Budget):
    """The training budget, and the objective under the mask.

    objective: "relabel" (SalUn) or "ascent" (the SLUG paper's baseline of that name).
    """

    objective: Literal["relabel", "ascent"] = "relabel"


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """No layer is scored: saliency is of entries."""
    return unprofiled(inputs)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Mask, train with every learning rate, choose, and edit the model in place; step size: see `train`.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: the forget gradient is not finite, or every learning rate breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    names = trainable(model, method.towers)
    gradient = forget_gradient(model, inputs.forget_images, inputs.forget_captions, names, method.micro_batch)
    loss = _relabelling if options.objective == "relabel" else ascent_finetuning.loss

    batches, masks = partial(Batches, model, inputs, options.batch), salient_half(gradient)
    return train(model, inputs, method, options, batches, loss, profile, progress, masks)


def salient_half(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks (bool, of the tensors' shapes) of the n // 2 entries with the largest |gradient| of all n."""
    sizes = [g.numel() for g in gradient.values()]
    magnitudes = torch.cat([g.flatten().abs() for g in gradient.values()])
    salient = torch.zeros_like(magnitudes, dtype=torch.bool)
    # A stable order: among equal magnitudes, as among the zeros of an unused entry, the first ones count.
    salient[magnitudes.argsort(descending=True, stable=True)[: len(magnitudes) // 2]] = True
    return {
        name: part.view_as(g)
        for (name, g), part in zip(gradient.items(), torch.split(salient, sizes), strict=True)
    }


def _relabelling(batches: Batches) -> Tensor:
    forget, retain = batches.forget(), batches.retain()
    wrong = relabelling_loss(forget.image, forget.text, retain.text, batches.logit_scale, batches.generator)
    return wrong + retain_loss(retain.image, retain.text, batches.logit_scale)


def relabelling_loss(
    image: Tensor, own: Tensor, others: Tensor, logit_scale: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of forget images with captions drawn from `others`; `own` ones are among the wrong.

    Args:
        image: (B, D) features of forget images.
        own: (B, D) features of their captions.
        others: (R, D) features of retain captions.
        logit_scale: factor on the cosines, a scalar.
        generator: draws the labels, uniformly.
    """
    logits = logit_scale * image @ torch.cat([others, own]).T
    labels = torch.randint(len(others), (len(image),), generator=generator)
    return functional.cross_entropy(logits, labels.to(logits.device))
