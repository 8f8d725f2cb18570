"""The retain gradient of a set that is read as a stream: memory for one batch, whatever the set's size.

The batch is the unit.  Where the pairs come from and how they are shuffled is the stream's
business (`data.streams` reads webdataset shards); over several processes every one walks the same
batches and reads of each only its own share of the pairs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from contracts.errors import InputError
from contracts.values import Tower
from unlearning import distributed
from unlearning.accumulation import Gradients, GradientSum
from unlearning.contrastive import Watch, surrogates
from unlearning.encoders import FULL_PRECISION, Compute, encoders
from unlearning.families.clip import ClipModel, Images, tower_of


class PairBatch(Protocol):
    """Pairs that are each other's negatives; known by number until somebody reads them."""

    def __len__(self) -> int:
        """How many pairs, over all processes."""

    def read(self, part: slice) -> tuple[Images, Sequence[str]]:
        """Images uint8 (n, H, W, 3) and n captions of a part of the batch."""


def streamed_retain_gradient(
    model: ClipModel,
    batches: Iterable[PairBatch],
    layers: Sequence[str],
    *,
    micro_batch: int,
    compute: Compute = FULL_PRECISION,
    watch: Watch | None = None,
    progress: Callable[[int], None] | None = None,
) -> Gradients:
    """Gradient of the contrastive loss, mean over the batches of a stream, each of equal weight.

    Equals `unlearning.gradients.retain_gradient` on the same batches.  Held at a time: this process's
    images of one batch, the features of the whole batch, and the graph of one micro-batch.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        batches: the same ones, in the same order, on every process.
        layers: weight names.
        micro_batch: items encoded at a time; decides memory, not the result.
        compute: precision and checkpointing of the encoders.
        watch: called with every piece of features that carries a graph, before it is differentiated, and
            with the numbers of its items in the order of the stream.
        progress: called with the number of batches done.

    Raises:
        InputError: the stream holds fewer than two pairs, or its first batch fewer than processes.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    total = GradientSum(model, layers, compute)
    edited = {tower_of(layer) for layer in layers}
    done = n = 0
    with encoders(model, layers, compute) as run:
        for done, batch in enumerate(batches, start=1):
            if done == 1:
                distributed.check_enough(len(batch))
            share = distributed.share(len(batch))
            images, captions = batch.read(share)
            pixels, tokens, first = torch.as_tensor(images), model.tokenize(captions), n + share.start

            def image(rows: Tensor, pixels: Tensor = pixels, first: int = first) -> Tensor:
                return run.image(pixels[rows - first])

            def text(rows: Tensor, tokens: Tensor = tokens, first: int = first) -> Tensor:
                return run.text(tokens[rows - first])

            by_tower: dict[Tower, Callable[[Tensor], Tensor]] = {"vision": image, "text": text}
            rows = torch.arange(n, n + len(batch))
            for scalar in surrogates(model, by_tower, rows, edited, micro_batch=micro_batch, watch=watch):
                total.add(scalar)
            n += len(batch)
            if progress is not None:
                progress(done)
    if n < 2:
        raise InputError(f"the contrastive loss needs at least 2 retain items, got {n}")
    return total.total(divisor=done)
