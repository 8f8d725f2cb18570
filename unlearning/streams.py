"""The retain gradient of a set that is read as a stream: memory for one batch, whatever the set's size.

The batch is the unit.  Where the pairs come from and how they are shuffled is the stream's
business (`data.streams` reads webdataset shards); over several processes every one walks the same
batches and reads of each only its own share of the pairs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from contracts.errors import InputError
from contracts.values import Tower
from unlearning import distributed
from unlearning.accumulation import Gradients, GradientSum
from unlearning.contrastive import surrogates
from unlearning.encoders import FULL_PRECISION, Compute, Encoders, encoders
from unlearning.families import Watch
from unlearning.families.clip import ClipModel, Images, tower_of
from unlearning.objectives import retain_loss


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

    Equals `unlearning.gradients.retain_gradient` on the same batches; here too a last batch of one pair
    joins the one before it.  Held at a time: this process's images of one batch, the features of the whole
    batch, and the graph of one micro-batch.

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
        InputError: the stream holds fewer than two pairs, its first batch fewer than processes, or a batch
            before the last one a single pair.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    total = GradientSum(model, layers, compute)
    edited = {tower_of(layer) for layer in layers}
    loss = partial(retain_loss, logit_scale=model.logit_scale)
    done = n = 0
    with encoders(model, layers, compute) as run:
        for done, batch in enumerate(_with_negatives(batches), start=1):
            if done == 1:
                distributed.check_enough(len(batch))
            rows, encode = torch.arange(n, n + len(batch)), _encode_by_tower(run, batch, n)
            for scalar in surrogates(
                model, encode, rows, edited, loss=loss, micro_batch=micro_batch, watch=watch
            ):
                total.add(scalar)
                del scalar  # its graph, before the next one is made
            del encode  # its images, before the next ones are read
            n += len(batch)
            if progress is not None:
                progress(done)
    if n < 2:
        raise InputError(f"the contrastive loss needs at least 2 retain items, got {n}")
    return total.total(divisor=done)


def _encode_by_tower(run: Encoders, batch: PairBatch, first: int) -> dict[Tower, Callable[[Tensor], Tensor]]:
    """From row numbers in the stream to features: this process's share of a batch that begins at `first`."""
    share = distributed.share(len(batch))
    images, captions = batch.read(share)
    pixels, tokens, start = torch.as_tensor(images), run.model.tokenize(captions), first + share.start
    return {
        "vision": lambda rows: run.image(pixels[rows - start]),
        "text": lambda rows: run.text(tokens[rows - start]),
    }


@dataclass(frozen=True)
class _Joined:
    """A batch and the pair that came after it."""

    before: PairBatch
    lone: PairBatch

    def __len__(self) -> int:
        return len(self.before) + 1

    def read(self, part: slice) -> tuple[Images, Sequence[str]]:
        """As `PairBatch.read`; nothing is read of a batch that the part does not touch."""
        n = len(self.before)
        if part.stop <= n:
            return self.before.read(part)
        images, captions = self.lone.read(slice(0, 1))
        if part.start < n:
            more, texts = self.before.read(slice(part.start, n))
            images = torch.cat([torch.as_tensor(more), torch.as_tensor(images)])
            captions = [*texts, *captions]
        return images, captions


def _with_negatives(batches: Iterable[PairBatch]) -> Iterator[PairBatch]:
    """The batches, a last one of one pair joined to the one before (as in `unlearning.contrastive.batches`).

    Raises:
        InputError: there is a batch of one pair before the last one.
    """
    held: PairBatch | None = None
    lone = False
    for number, batch in enumerate(batches):
        if lone:
            raise InputError(f"batch {number} of the stream holds a single pair, which has no negatives")
        lone = len(batch) == 1
        if held is not None and lone:
            held = _Joined(held, batch)
            continue
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield held
