"""Gradients of the forget and retain losses at the present weights, whatever the micro-batch size.

The forget loss is a mean over items, so its gradient is streamed: micro-batch sums, divided by the
number of items.  The retain loss couples all items of a batch; `unlearning.contrastive` takes its
gradient in pieces all the same.  Both share the items out where there are several processes
(`unlearning.distributed`); a retain set that does not fit into memory is read as a stream
(`unlearning.streams`).

Gradients of a forget set are personal data: they can be inverted.  Callers keep them in memory or
in the run folder.

Shapes: N items, D embedding width, L context length.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Tower
from unlearning import distributed
from unlearning.accumulation import Gradients, GradientSum, mean_gradient
from unlearning.contrastive import drawn_batches, surrogates
from unlearning.encoders import FULL_PRECISION, Compute, Encoders, encoders
from unlearning.families import Watch
from unlearning.families.clip import ClipModel, Images, tower_of
from unlearning.objectives import forget_loss, retain_loss

__all__ = ["Gradients", "forget_gradient", "load_gradients", "retain_gradient", "save_gradients"]


def forget_gradient(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    micro_batch: int,
    compute: Compute = FULL_PRECISION,
) -> Gradients:
    """Gradient of the mean forget loss over all items, for the named layers.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        layers: weight names.
        micro_batch: items encoded at a time; decides memory, not the result.
        compute: precision and checkpointing of the encoders.

    Raises:
        InputError: there are no items, or not as many captions as images.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    pixels, tokens = _checked(model, images, captions)
    edited = {tower_of(layer) for layer in layers}
    with encoders(model, layers, compute) as encode:

        def losses(rows: Tensor) -> Iterator[Tensor]:
            return _forget_losses(encode, pixels[rows], tokens[rows], edited)

        return mean_gradient(model, layers, len(pixels), micro_batch, losses, compute=compute)


def _forget_losses(
    encode: Encoders, pixels: Tensor, tokens: Tensor, edited: Collection[Tower]
) -> Iterator[Tensor]:
    """The loss, first as a function of the vision tower, then of the text tower, if both are edited.

    It is linear in the features of either, so the gradients add up to the whole; but the graphs of both
    towers are never there together, for one more forward pass of the cheaper one.  A tower that runs without
    a graph does so before there is one, so that what both take is never taken at once.
    """
    if "vision" not in edited:
        image = encode.image(pixels)
        yield forget_loss(image, encode.text(tokens))
        return
    with torch.no_grad():
        text = encode.text(tokens)
    image = encode.image(pixels)
    yield forget_loss(image, text)
    if len(edited) == 2:
        yield forget_loss(image.detach(), encode.text(tokens))


def retain_gradient(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    retain_batch: int,
    micro_batch: int,
    seed: int,
    compute: Compute = FULL_PRECISION,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the contrastive loss, mean over batches of `retain_batch` items in seeded random order.

    Every batch weighs the same, also a smaller last one (`unlearning.contrastive.drawn_batches`).

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        layers: weight names.
        retain_batch: items that are each other's negatives, over all processes.
        micro_batch: items encoded at a time; decides memory, not the result.
        seed: of the order of the items.
        compute: precision and checkpointing of the encoders.
        watch: called with every piece of features that carries a graph, before it is differentiated, and
            with the row numbers of its items; over several processes each one sees its own.
        progress: called with (batches done, batches).

    Raises:
        InputError: there are fewer than two items, not as many captions as images, a batch is to hold
            fewer than two items, or a whole one holds fewer than processes.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    pixels, tokens = _checked(model, images, captions)
    n = len(pixels)
    if n < 2:
        raise InputError(f"the contrastive loss needs at least 2 retain items, got {n}")
    distributed.check_enough(min(n, retain_batch))
    own = drawn_batches(n, retain_batch, seed)
    total = GradientSum(model, layers, compute, divisor=len(own))
    edited = {tower_of(layer) for layer in layers}
    with encoders(model, layers, compute) as run:
        encode, loss = run.by_tower(pixels, tokens), partial(retain_loss, logit_scale=model.logit_scale)
        for done, rows in enumerate(own, start=1):
            for scalar in surrogates(
                model, encode, rows, edited, loss=loss, micro_batch=micro_batch, watch=watch
            ):
                total.add(scalar / len(own))
                del scalar  # its graph, before the next one is made
            if progress is not None:
                progress(done, len(own))
    return total.total()


def _checked(model: ClipModel, images: Images, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The images as a tensor (N, H, W, 3), and token ids (N, L)."""
    if len(images) == 0 or len(images) != len(captions):
        raise InputError(f"{len(images)} images and {len(captions)} captions do not make a set of pairs")
    return torch.as_tensor(images), model.tokenize(captions)


def save_gradients(gradients: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Write gradients by concept and layer as one safetensors file: run folder only.

    A concept may have none: that no layer of it can be stepped is for the edit to say.
    """
    flat = {
        f"{concept}/{layer}": grad.cpu().contiguous()
        for concept, own in gradients.items()
        for layer, grad in own.items()
    }
    order = {concept: list(own) for concept, own in gradients.items()}
    save_file(flat, path, metadata={"order": json.dumps(order)})


def load_gradients(path: Path, device: torch.device | str = "cpu") -> dict[str, Gradients]:
    """The inverse of `save_gradients`, in the same order of concepts and layers.

    Raises:
        ModelError: the file is missing or incomplete.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as stream:
            order = json.loads((stream.metadata() or {}).get("order", "null"))
            if isinstance(order, dict):  # files of an earlier version have a list
                return {
                    concept: {layer: stream.get_tensor(f"{concept}/{layer}") for layer in layers}
                    for concept, layers in order.items()
                }
    except (OSError, SafetensorError):
        pass
    raise ModelError(f"{path.name} is missing or is not a complete gradient file")
