"""Selective synaptic dampening (SSD): weights that matter to the forget set alone are shrunk, without a step.

Foster, Schoepf, Brintrup, arXiv 2308.07707 (AAAI 2024).  With the diagonal Fisher information of each
set, F = mean over its items of (grad log-likelihood)^2, every entry is multiplied by

    min(dampening * F_retain / F_forget, 1)   where F_forget > selection * F_retain,   else 1

A trial dampens the original weights once.  (The SLUG paper's code dampens the dampened model again
each epoch, and squares the gradient of a batch, in which items cancel, of another loss for each set.)

Both constants are searched on the search split.  The SLUG paper fixes selection at 10 and searches
dampening from 0.1 to 5; here `dampenings` are shares of selection, 0.01 to 0.5, the same range.

What is approximate: F_retain stands for the Fisher of the whole training set, and is taken over at
most `items` drawn items, like F_forget.  CLIP's contrastive loss gives no likelihood of one pair; ours
is log p(caption | image) = kappa cos + constant, a von Mises-Fisher direction around the image's.
Its gradient is that of SLUG's forget loss, pair by pair; kappa cancels.  (A softmax over negatives
was tried: it saturates on well-fitted forget items, whose Fisher then vanishes.)

Shapes: N pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import sqrt

import torch
from torch import Tensor

from contracts.canonical import from_plain
from contracts.errors import ModelError
from contracts.values import Method
from unlearning.attempts import Judge, check_profile, settle, trainable, try_each, unprofiled
from unlearning.families.clip import ClipModel, Images
from unlearning.inplace import requiring_grad
from unlearning.objectives import forget_loss
from unlearning.options import check_numbers
from unlearning.request import Outcome, Profile, Progress, UnlearnInputs

Fisher = dict[str, Tensor]


@dataclass(frozen=True)
class Options:
    """SSD's two hyper-parameters (alpha and lambda of the paper), and how much its Fisher matrices cost.

    selections: an entry is dampened where it matters this much more to the forget set; a grid.
    dampenings: the dampening constant over that factor, which is what is left of an entry that is
        just selected; a grid.
    items: at most this many of each set.
    """

    selections: tuple[float, ...] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
    dampenings: tuple[float, ...] = (0.01, 0.1, 0.5)
    items: int = 256

    def __post_init__(self) -> None:
        check_numbers(self, "selections", "dampenings", above=0)
        check_numbers(self, "items", at_least=1)


def profile(model: ClipModel, inputs: UnlearnInputs, method: Method, progress: Progress) -> Profile:
    """No layer is scored: importance is of entries."""
    return unprofiled(inputs)


def edit(
    model: ClipModel, inputs: UnlearnInputs, method: Method, profile: Profile, progress: Progress
) -> Outcome:
    """Dampen with every pair of constants, choose, and edit the model in place.

    The step size of a trial and of an edit is the relative change of all trained weights together.

    Raises:
        InputError: the profile is of other concepts.
        ModelError: a gradient is not finite, all weights are zero, or every constant breaks the model.
    """
    check_profile(profile, inputs)
    options = from_plain(Options, method.options)
    names = trainable(model, method.towers)
    forget, retain = _importances(model, inputs, options, names, progress)
    judge = Judge(model, inputs, method, names)
    attempts = try_each(
        model,
        judge,
        names,
        list(product(sorted(options.selections, reverse=True), sorted(options.dampenings, reverse=True))),
        lambda weights, setting: _sized(
            weights, dampened(weights, forget, retain, setting[0], setting[0] * setting[1])
        ),
        progress,
    )
    return settle(model, inputs, judge, attempts, profile)


def _sized(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[float, Mapping[str, Tensor]]:
    moved = sum(float((after[name] - weight).double().square().sum()) for name, weight in before.items())
    whole = sum(float(weight.double().square().sum()) for weight in before.values())
    if whole == 0.0:
        raise ModelError("every weight that could be dampened is zero")
    return sqrt(moved / whole), after


def dampened(
    weights: Mapping[str, Tensor], forget: Fisher, retain: Fisher, selection: float, dampening: float
) -> dict[str, Tensor]:
    """The weights after one dampening (equations 5 and 6 of the paper)."""
    result = {}
    for name, weight in weights.items():
        selected = forget[name] > selection * retain[name]
        factor = (dampening * retain[name] / forget[name]).clamp(max=1.0)
        result[name] = torch.where(selected, weight * factor, weight)
    return result


def _importances(
    model: ClipModel, inputs: UnlearnInputs, options: Options, names: Sequence[str], progress: Progress
) -> tuple[Fisher, Fisher]:
    """F_forget and F_retain."""
    draw = torch.Generator().manual_seed(inputs.seed)
    found = []
    for what, images, captions in (
        ("forget importance", inputs.forget_images, inputs.forget_captions),
        ("retain importance", inputs.retain_images, inputs.retain_captions),
    ):
        rows = torch.randperm(len(images), generator=draw)[: options.items]
        drawn = [captions[row] for row in rows]
        found.append(squared_gradients(model, torch.as_tensor(images)[rows], drawn, names))
        progress(what, 1, 1)
    return found[0], found[1]


def squared_gradients(
    model: ClipModel, images: Images, captions: Sequence[str], names: Sequence[str]
) -> Fisher:
    """Mean over pairs of the squared gradient of one pair's cosine; one pair at a time.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        names: of the tensors.

    Raises:
        ModelError: a gradient is not finite.
    """
    pixels, tokens = torch.as_tensor(images), model.tokenize(captions)
    weights = [model.parameters[name] for name in names]
    total = {name: torch.zeros_like(weight) for name, weight in zip(names, weights, strict=True)}
    with requiring_grad(model.net, total):
        for i in range(len(pixels)):
            image = model.image_features(model.preprocess(pixels[i : i + 1]))
            text = model.text_features(tokens[i : i + 1])
            gradients = torch.autograd.grad(forget_loss(image, text), weights, allow_unused=True)
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is not None:
                    total[name] += gradient.square() / len(pixels)
    for name, squares in total.items():
        if not bool(torch.isfinite(squares).all()):
            raise ModelError(f"the gradient of {name} is not finite")
    return total
