"""Gradients of the forget and retain losses at the present weights, whatever the micro-batch size.

The forget loss is a mean over items, so its gradient is streamed: micro-batch sums, divided by the
number of items.  The retain loss couples all items of a batch; its gradient is computed exactly in
micro-batches by caching features (GradCache, arXiv 2101.06983): encode without graph, differentiate
the loss with respect to the features, then encode again piece by piece and push those feature
gradients through.

Gradients of a forget set are personal data: they can be inverted.  Callers keep them in memory or
in the run folder.

Shapes: N items, D embedding width, L context length.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning.families.clip import ClipModel, Images, tower_of
from unlearning.inplace import requiring_grad
from unlearning.objectives import forget_loss, retain_loss

Gradients = dict[str, Tensor]


def forget_gradient(
    model: ClipModel, images: Images, captions: Sequence[str], layers: Sequence[str], micro_batch: int
) -> Gradients:
    """Gradient of the mean forget loss over all items, for the named layers.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        layers: weight names.
        micro_batch: items encoded at a time; decides memory, not the result.

    Raises:
        InputError: there are no items, or not as many captions as images.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    pixels, tokens = _checked(model, images, captions)
    n, total = len(pixels), _zeros(model, layers)
    with requiring_grad(model.net, total):
        for rows in torch.split(torch.arange(n), micro_batch):
            image = model.image_features(model.preprocess(pixels[rows]))
            text = model.text_features(tokens[rows])
            _add(total, model, forget_loss(image, text) * (len(rows) / n))
    return _finite(total)


def retain_gradient(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    retain_batch: int,
    micro_batch: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the contrastive loss, mean over batches of `retain_batch` items in seeded random order.

    Every batch weighs the same, also a smaller last one, as in the reference implementation.  The
    order is drawn because neighbours in a file (views of one drawing) are poor negatives.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        layers: weight names.
        retain_batch: items that are each other's negatives.
        micro_batch: items encoded at a time; decides memory, not the result.
        seed: of the order of the items.
        progress: called with (batches done, batches).

    Raises:
        InputError: there are fewer than two items, or not as many captions as images.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    pixels, tokens = _checked(model, images, captions)
    n, total = len(pixels), _zeros(model, layers)
    if n < 2:
        raise InputError(f"the contrastive loss needs at least 2 retain items, got {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    batches = torch.split(order, retain_batch)
    with requiring_grad(model.net, total):
        for done, rows in enumerate(batches, start=1):
            for surrogate in _surrogates(model, pixels, tokens, rows, layers, micro_batch):
                _add(total, model, surrogate / len(batches))
            if progress is not None:
                progress(done, len(batches))
    return _finite(total)


def _surrogates(
    model: ClipModel, images: Tensor, tokens: Tensor, rows: Tensor, layers: Sequence[str], micro_batch: int
) -> Iterator[Tensor]:
    """Scalars whose gradients add up to the gradient of the retain loss of one batch."""
    encode: dict[str, Callable[[Tensor], Tensor]] = {
        "vision": lambda part: model.image_features(model.preprocess(images[part])),
        "text": lambda part: model.text_features(tokens[part]),
    }
    if len(rows) <= micro_batch:
        yield retain_loss(encode["vision"](rows), encode["text"](rows), model.logit_scale)
        return
    pieces = torch.split(rows, micro_batch)
    with torch.no_grad():
        features = {tower: torch.cat([run(p) for p in pieces]) for tower, run in encode.items()}
    edited_towers = sorted({tower_of(layer) for layer in layers})
    leaves = [features[tower].requires_grad_() for tower in edited_towers]
    loss = retain_loss(features["vision"], features["text"], model.logit_scale)
    for tower, grad in zip(edited_towers, torch.autograd.grad(loss, leaves), strict=True):
        for piece, piece_grad in zip(pieces, torch.split(grad, micro_batch), strict=True):
            yield (encode[tower](piece) * piece_grad).sum()


def _checked(model: ClipModel, images: Images, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The images as a tensor (N, H, W, 3), and token ids (N, L)."""
    if len(images) == 0 or len(images) != len(captions):
        raise InputError(f"{len(images)} images and {len(captions)} captions do not make a set of pairs")
    return torch.as_tensor(images), model.tokenize(captions)


def _zeros(model: ClipModel, layers: Sequence[str]) -> Gradients:
    unknown = [layer for layer in layers if layer not in model.parameters]
    if unknown:
        raise ModelError(f"the model has no weight {unknown[0]!r}")
    return {layer: torch.zeros_like(model.parameters[layer]) for layer in layers}


def _add(total: Gradients, model: ClipModel, scalar: Tensor) -> None:
    """total += gradient of `scalar`; a tower that `scalar` does not depend on adds nothing."""
    wanted = [model.parameters[layer] for layer in total]
    for layer, grad in zip(total, torch.autograd.grad(scalar, wanted, allow_unused=True), strict=True):
        if grad is not None:
            total[layer] += grad


def _finite(gradients: Gradients) -> Gradients:
    for layer, grad in gradients.items():
        if not torch.isfinite(grad).all():
            raise ModelError(f"the gradient of {layer} is not finite")
    return gradients


def save_gradients(gradients: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Write gradients by concept and layer as one safetensors file: run folder only."""
    flat = {
        f"{concept}/{layer}": grad.cpu().contiguous()
        for concept, own in gradients.items()
        for layer, grad in own.items()
    }
    save_file(flat, path, metadata={"order": json.dumps(list(flat))})


def load_gradients(path: Path, device: torch.device | str = "cpu") -> dict[str, Gradients]:
    """The inverse of `save_gradients`, in the same order of concepts and layers.

    Raises:
        ModelError: the file is missing or incomplete.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as stream:
            order = json.loads(stream.metadata()["order"])
            flat = {key: stream.get_tensor(key) for key in order}
    except (OSError, SafetensorError):
        raise ModelError(f"{path.name} is missing or is not a complete gradient file") from None
    gradients: dict[str, Gradients] = {}
    for key, grad in flat.items():
        concept, _, layer = key.partition("/")
        gradients.setdefault(concept, {})[layer] = grad
    return gradients
