"""Second moments of what enters a layer, and of the gradients at what leaves it, on a retain set.

A step D along a matrix W changes the output W a by D a; over a set its mean square is tr(D C D^T) with
C = E[a a^T], the input factor of K-FAC (arXiv 1503.05671; for convolutions, of the unfolded input:
arXiv 1602.01407).  The output factor G = E[g g^T], of the loss's gradients g at the outputs, says which
changes of the output matter.

Both are collected while the retain gradient is computed and cost no pass of their own: the input
of every layer is kept for the backward pass anyway, and g passes by in it.  A row of a layer's
input counts if its g is not zero, that is, if the feature depends on it.  That is exact where the
structure decides: text after the end-of-text token, which a causal tower cannot see, and in the
last block every token but the pooled one, are left out without a rule for them.  It also leaves
out places of an image where every output is behind a closed ReLU.

Neighbouring places of an image are much alike, and early convolutions see thousands of them: of a
convolution's places every s-th is used, beginning one place further in each image, with the largest s
that still leaves `ROWS_PER_INPUT` rows per input.  An image's place in the set decides where it begins,
so the sums of parts of a set add up to those of the whole.

Weights shaped as vectors (gains of normalisations) have no second moment here: a gain scales every
item's channel alike, and a normalised channel's energy is about 1 on any set, so there is no direction
in which a step would spare the retain set.

Autocast and checkpointing change where inputs are read, not what is summed: rows are taken in the precision
that the layer saw them in, products of them are summed in fp32.

Memory: 4 P n^2 bytes per layer of input width n (k * k * channels of a convolution),
and 4 P o^2 for the output factor of width o, next to the graph of one micro-batch.

Shapes: P parts of a grouped convolution (1 for everything else), R rows, o outputs and n inputs of a part.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from contracts.errors import InputError
from unlearning.encoders import FULL_PRECISION, Compute, encoders
from unlearning.families.clip import ClipModel, Images, tower_of
from unlearning.gradients import Gradients, retain_gradient
from unlearning.moment_sums import MomentSums
from unlearning.moments_collector import Collector, matrices
from unlearning.streams import PairBatch, streamed_retain_gradient


def retain_gradient_and_sums(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    retain_batch: int,
    micro_batch: int,
    seed: int,
    widest: int | None = None,
    with_outputs: bool = False,
    compute: Compute = FULL_PRECISION,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Gradients, dict[str, MomentSums]]:
    """The retain gradient of the named layers, and sums of second moments of those that are matrices.

    They depend on the weights and the retain set alone, not on what is to be forgotten.  Moments come in
    the order of the backward pass: a tower's first one is the projection that makes its features.

    Args:
        model: at the weights to measure at; they stay as they are.
        images: uint8 (N, H, W, 3).
        captions: N texts.
        layers: weight names.
        retain_batch: items that are each other's negatives in the loss.
        micro_batch: items encoded at a time; decides memory, not the result.
        seed: of the order of the items.
        widest: layers with more inputs have no moments taken; None takes those of all.
        with_outputs: whether the output factor is wanted too.
        compute: precision and checkpointing of the encoders; not float16.
        progress: called with (batches done, batches).

    Raises:
        InputError: see `unlearning.gradients.retain_gradient`; or float16 is asked for.
        ModelError: a gradient or a moment is not finite (the message names the tensor).
    """
    _refuse_float16(compute)
    collector = Collector(matrices(model.parameters, layers), len(images), widest, with_outputs)
    gradient = retain_gradient(
        model,
        images,
        captions,
        layers,
        retain_batch=retain_batch,
        micro_batch=micro_batch,
        seed=seed,
        compute=compute,
        watch=collector.watch,
        progress=progress,
    )
    collector.all_reduce()
    return gradient, collector.sums()


def streamed_retain_gradient_and_sums(
    model: ClipModel,
    batches: Iterable[PairBatch],
    layers: Sequence[str],
    *,
    n_items: int,
    micro_batch: int,
    widest: int | None = None,
    compute: Compute = FULL_PRECISION,
    progress: Callable[[int], None] | None = None,
) -> tuple[Gradients, dict[str, MomentSums]]:
    """As `retain_gradient_and_sums`, of a set that is read as a stream (`unlearning.streams`).

    Args:
        model: at the weights to measure at; they stay as they are.
        batches: the same ones, in the same order, on every process.
        layers: weight names.
        n_items: how many pairs the stream holds; decides how densely places of images are sampled.
        micro_batch: items encoded at a time; decides memory, not the result.
        widest: layers with more inputs have no moments taken; None takes those of all.
        compute: precision and checkpointing of the encoders; not float16.
        progress: called with the number of batches done.

    Raises:
        InputError: see `unlearning.streams.streamed_retain_gradient`; or float16 is asked for.
        ModelError: a gradient or a moment is not finite (the message names the tensor).
    """
    _refuse_float16(compute)
    collector = Collector(matrices(model.parameters, layers), n_items, widest, with_outputs=False)
    gradient = streamed_retain_gradient(
        model,
        batches,
        layers,
        micro_batch=micro_batch,
        compute=compute,
        watch=collector.watch,
        progress=progress,
    )
    collector.all_reduce()
    return gradient, collector.sums()


def part_sums(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    layers: Sequence[str],
    *,
    rows: Tensor,
    n_items: int,
    micro_batch: int,
    widest: int | None = None,
    compute: Compute = FULL_PRECISION,
) -> dict[str, MomentSums]:
    """What some items of a set add to `retain_gradient_and_sums` of the whole of it; of the inputs only.

    Which rows of an input count is a matter of the network's structure, so any direction of the
    features will do in place of the loss's gradient: a fixed one, drawn by seed.

    Args:
        model: at the weights to measure at; they stay as they are.
        images: uint8 (N, H, W, 3), the items of the part.
        captions: N texts.
        layers: weight names.
        rows: (N,) where in the whole set the items stand.
        n_items: how many items the whole set has.
        micro_batch: items encoded at a time; decides memory, not the result.
        widest: as for the whole set.
        compute: as for the whole set.

    Raises:
        InputError: float16 is asked for.
        ModelError: a moment is not finite (the message names the tensor).
    """
    _refuse_float16(compute)
    weights = matrices(model.parameters, layers)
    collector = Collector(weights, n_items, widest, with_outputs=False)
    pixels, tokens = torch.as_tensor(images), model.tokenize(captions)
    with encoders(model, weights, compute) as run:
        for piece in torch.split(torch.arange(len(rows)), micro_batch):
            # In the order of the retain gradient's backward passes, vision first.
            for tower in sorted({tower_of(layer) for layer in weights}, reverse=True):
                features = run.image(pixels[piece]) if tower == "vision" else run.text(tokens[piece])
                collector.watch(features, rows[piece])
                direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
                own = [weight for layer, weight in weights.items() if tower_of(layer) == tower]
                torch.autograd.grad((features @ direction.to(features)).sum(), own)
    return collector.sums()


def _refuse_float16(compute: Compute) -> None:
    """Whether a row counts is told by its gradient, which vanishes in float16 where it is merely small."""
    if compute.autocast is torch.float16:
        raise InputError("second moments cannot be taken under float16 autocast: use bfloat16 or fp32")
