"""The gradient of a loss that couples a batch, the contrastive one, exact, in pieces and over processes.

The loss couples all items of a batch.  Features are computed first, without a graph; the loss is
differentiated with respect to the features; then every piece is encoded again, with a graph, and its
rows of that gradient are pushed through (GradCache, arXiv 2101.06983).  Over several processes each one
does so for its share of the items, with the features of all gathered in between: the negatives
of an item are the whole batch's, wherever they were encoded.

Shapes: B items of a batch, D embedding width.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from contracts.errors import InputError
from contracts.values import Tower
from unlearning import distributed
from unlearning.families import Watch
from unlearning.families.clip import ClipModel


def batches(order: Tensor, size: int) -> list[Tensor]:
    """Row numbers (N,) as batches of `size` in their order, the last one smaller; never of one item.

    One leftover item joins the batch before it.  By itself it has no negatives: its loss is 0 whatever the
    weights, so second moments would miss the item.  The reference implementation keeps such a batch; it
    adds exactly zero to the gradient there, but counts as a batch of the mean.

    Raises:
        InputError: batches of fewer than two items are asked for.
    """
    if size < 2:
        raise InputError(f"a contrastive batch needs at least 2 items, got {size}")
    found = list(torch.split(order, size))
    if len(found) > 1 and len(found[-1]) == 1:
        found[-2:] = [torch.cat(found[-2:])]
    return found


def drawn_batches(n: int, size: int, seed: int) -> list[Tensor]:
    """`batches` of n rows in seeded random order: which pairs of a retain set are each other's negatives.

    The order is drawn because neighbours in a file (views of one drawing) are poor negatives.

    Raises:
        InputError: batches of fewer than two items are asked for.
    """
    return batches(torch.randperm(n, generator=torch.Generator().manual_seed(seed)), size)


def surrogates(
    model: ClipModel,
    encode: Mapping[Tower, Callable[[Tensor], Tensor]],
    rows: Tensor,
    edited: Collection[Tower],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    micro_batch: int,
    watch: Watch | None = None,
) -> Iterator[Tensor]:
    """Scalars whose gradients add up, over all processes, to that of the loss of one batch.

    Args:
        model: whose loss it is.
        encode: by tower, from row numbers (n,) to features (n, D).
        rows: (B,) row numbers of the batch's items, all of them; `encode` is asked for this process's own.
        edited: towers that hold a weight to differentiate with respect to.
        loss: of the batch's image and text features, (B, D) each.
        micro_batch: items encoded at a time.
        watch: called with every piece of features that carries a graph, before it is differentiated.
    """

    def run(tower: Tower, part: Tensor) -> Tensor:
        features = encode[tower](part)
        if watch is not None and features.requires_grad:
            watch(features, part)
        return features

    share = distributed.share(len(rows))
    pieces = _split(rows[share], micro_batch)
    # One tower after the other, so that their graphs are never there together.  The first one's last piece
    # keeps its graph while the features wait for their gradient; everything else is encoded once more.
    both: tuple[Tower, ...] = ("vision", "text")
    towers = [tower for tower in both if tower in edited]
    first: dict[Tower, list[Tensor]] = {}
    # What runs beside a graph needs room too, so the tower that keeps one comes last.
    for tower in sorted(encode, key=lambda tower: tower == towers[0]):
        last = len(pieces) - 1 if tower == towers[0] else None
        first[tower] = []
        for number, piece in enumerate(pieces):
            with torch.set_grad_enabled(number == last):
                first[tower].append(run(tower, piece))
    # In the same order by every process, however many pieces it has.
    features = {tower: _gathered(model, first[tower], len(rows)) for tower in both}
    leaves = [features[tower].requires_grad_() for tower in towers]
    value = loss(features["vision"], features["text"])
    for tower, grad in zip(towers, torch.autograd.grad(value, leaves), strict=True):
        kept = first.pop(tower)[-1:] if tower == towers[0] else []
        for piece, piece_grad in reversed([*zip(pieces, _split(grad[share], micro_batch), strict=True)]):
            own = kept.pop() if kept else run(tower, piece)
            yield (own * piece_grad).sum()
            del own


def _split(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Pieces of at most `size` rows; none of no rows, where torch would give an empty one."""
    return torch.split(rows, size) if len(rows) else ()


def _gathered(model: ClipModel, own: list[Tensor], n: int) -> Tensor:
    """The features (n, D) of all processes, of which `own` are this one's pieces, perhaps none."""
    width = model.config["model_cfg"]["embed_dim"]
    mine = torch.cat(own).detach() if own else torch.empty(0, width, device=model.device)
    return distributed.gather_rows(mine, n)
