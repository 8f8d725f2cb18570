"""The paper's procedure, plainly: SLUG as its released code runs it, without its bugs or our savings.

    gradients   of the whole model, batch by batch over the full forget set and the full retain set
    front       importance and |alignment| of every candidate, each compared with each, tower by tower
    search      ten steps for every front layer of both towers; for each step the model is copied, and
                both towers run again over all search images and all class texts, at full text length
    choice      of everything tried the lowest forget rate, then the highest retained rate

Source: arXiv 2407.11867, algorithms 1 and 2, and github.com/CSIPlab/SLUG at 59629a2.  Left out are the
bugs (a wrong sign, nothing chosen at the end, a crash at zero gradients, success on features that are
not finite) and what the released code adds to every step and decides nothing: both losses over the
full sets (`losses`, timed by itself), membership inference, further sets.  Of ours it shares losses,
tokenizer and preprocessing; `tests/bench/test_procedure.py` holds both to the same steps and rates.

Shapes: N search images, C classes, T templates, D embedding width.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import ModelError
from contracts.values import Method
from unlearning.families.clip import ClipModel, Images, tower_of
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import UnlearnInputs
from unlearning.zero_shot import fill_templates

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One tried step: FA@forget_at over the targets, TA@1 over the rest of the search split."""

    layer: str
    step_size: float
    forget_rate: float
    retained_rate: float


def unlearn(model: ClipModel, inputs: UnlearnInputs, method: Method) -> tuple[Trial, tuple[Trial, ...]]:
    """Profile, search, choose, and edit the model in place; the chosen trial, and all of them.

    Raises:
        ModelError: no step leaves the model with finite features.
    """
    forget, retain = gradients(model, inputs, method)
    tried = tuple(search(model, inputs, method, forget, front(model, forget, retain)))
    if not tried:
        raise ModelError("no step leaves the model with finite features")
    chosen = min(tried, key=lambda t: (t.forget_rate, -t.retained_rate))
    with torch.no_grad():
        model.parameters[chosen.layer].add_(chosen.step_size * forget[chosen.layer])
    return chosen, tried


def gradients(model: ClipModel, inputs: UnlearnInputs, method: Method) -> tuple[Gradients, Gradients]:
    """Of the forget loss (mean over items) and of the retain loss (mean over batches), for all weights.

    A contrastive batch goes through in one piece: `retain_batch` decides memory.
    """
    net = deepcopy(model.net).requires_grad_(True)
    pixels, tokens = torch.as_tensor(inputs.forget_images), model.tokenize(inputs.forget_captions)
    for rows in torch.split(torch.arange(len(pixels)), method.micro_batch):
        image, text = _encode(model, net, pixels[rows], tokens[rows])
        (forget_loss(image, text) * (len(rows) / len(pixels))).backward()  # type: ignore[no-untyped-call]
    forget = _taken(net)
    pixels, tokens = torch.as_tensor(inputs.retain_images), model.tokenize(inputs.retain_captions)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(inputs.seed))
    batches = torch.split(order, method.retain_batch)
    for rows in batches:
        image, text = _encode(model, net, pixels[rows], tokens[rows])
        (retain_loss(image, text, net.logit_scale.exp()) / len(batches)).backward()  # type: ignore[no-untyped-call]
    return forget, _taken(net)


def front(model: ClipModel, forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> list[str]:
    """The layers, of both towers, that no layer of their tower beats in importance and |alignment|."""
    scores: dict[str, tuple[float, float]] = {}
    for layer in [c.name for c in model.candidates()]:
        g, weight = forget[layer].flatten(), model.parameters[layer].detach().flatten()
        if g.any() and weight.any():
            alignment = functional.cosine_similarity(g, retain[layer].flatten(), dim=0, eps=1e-6).abs()
            scores[layer] = float(g.norm() / weight.norm()), float(alignment)
    return [
        layer
        for layer, (importance, alignment) in scores.items()
        if not any(
            other[0] > importance and other[1] < alignment
            for rival, other in scores.items()
            if tower_of(rival) == tower_of(layer)
        )
    ]


def search(
    model: ClipModel, inputs: UnlearnInputs, method: Method, forget: Mapping[str, Tensor], layers: list[str]
) -> Iterator[Trial]:
    """Doubling, then bisecting: `search_steps` steps in every layer, each on a copy of the model."""
    for layer in layers:
        low, high = 0.0, None
        step = 0.1 * float(model.parameters[layer].norm() / forget[layer].norm())
        for _ in range(method.search_steps):
            net = deepcopy(model.net)
            with torch.no_grad():
                net.get_parameter(layer).add_(step * forget[layer])
            rates = evaluate(model, net, inputs, method)
            if rates is not None:
                yield Trial(layer, step, *rates)
            if rates is None or rates[0] <= method.forget_target:
                high = step
            else:
                low = step
            step = 2 * step if high is None else (low + high) / 2


@torch.no_grad()
def evaluate(model: ClipModel, net: Any, inputs: UnlearnInputs, method: Method) -> tuple[float, float] | None:
    """FA@forget_at and TA@1 of a network on the whole search split; None if a feature is not finite.

    Args:
        model: its tokenizer and preprocessing.
        net: the open_clip network to measure.
        inputs: the search split and the classes.
        method: where a forgotten item may stand, and how many items are encoded at a time.
    """
    pixels, labels = torch.as_tensor(inputs.search_images), torch.as_tensor(inputs.search_labels)
    tokens = model.tokenize(fill_templates(inputs.class_names, inputs.templates))
    images = torch.cat([_image(model, net, part) for part in torch.split(pixels, method.micro_batch)])
    texts = torch.cat([_text(model, net, part) for part in torch.split(tokens, method.micro_batch)])
    classes = functional.normalize(
        texts.view(len(inputs.templates), len(inputs.class_names), -1).mean(0), dim=1
    )
    scores = (images @ classes.T).cpu()
    if not bool(torch.isfinite(scores).all()):
        return None
    ranked = scores.argsort(dim=1, descending=True)
    rank = (ranked == labels[:, None]).int().argmax(dim=1) + 1
    asked = torch.isin(labels, torch.tensor(inputs.targets))
    known, right = (rank <= method.forget_at).double(), (rank == 1).double()
    return float(known[asked].mean()), float(right[~asked].mean())


@torch.no_grad()
def losses(model: ClipModel, net: Any, inputs: UnlearnInputs, method: Method) -> tuple[float, float]:
    """Forget and retain loss over the full sets: the released code takes them at every step, to log them."""

    def batches(images: Images, captions: Sequence[str]) -> Iterator[tuple[Tensor, Tensor]]:
        pixels, tokens = torch.as_tensor(images), model.tokenize(captions)
        for rows in torch.split(torch.arange(len(pixels)), method.micro_batch):
            yield _encode(model, net, pixels[rows], tokens[rows])

    scale = net.logit_scale.exp()
    forget = [forget_loss(*pair) for pair in batches(inputs.forget_images, inputs.forget_captions)]
    retain = [retain_loss(*pair, scale) for pair in batches(inputs.retain_images, inputs.retain_captions)]
    return float(torch.stack(forget).mean()), float(torch.stack(retain).mean())


def _encode(model: ClipModel, net: Any, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return _image(model, net, pixels), _text(model, net, tokens)


def _image(model: ClipModel, net: Any, pixels: Tensor) -> Tensor:
    features: Tensor = net.encode_image(model.preprocess(pixels), normalize=True)
    return features


def _text(model: ClipModel, net: Any, tokens: Tensor) -> Tensor:
    features: Tensor = net.encode_text(tokens.to(model.device), normalize=True)
    return features


def _taken(net: Any) -> Gradients:
    """The accumulated gradients by name; what comes next starts from nothing."""
    found = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    return found
