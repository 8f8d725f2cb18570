"""Sums of gradients in fp32: over micro-batches, then over processes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning import distributed
from unlearning.encoders import FULL_PRECISION, Compute
from unlearning.families import Editable, Watch

Gradients = dict[str, Tensor]


class GradientSum:
    """Running sum of the gradients of scalars, for the named layers.

    autograd adds the gradient of every weight to the sum as soon as it is known, and forgets it: beside
    the sum there is one weight's gradient at a time, not those of all.

    Args:
        model: whose layers they are; its `.grad` are in use inside `add` alone.
        layers: weight names.
        compute: precision; with float16 scalars are scaled while they are differentiated.
        divisor: what the scalars were divided by, which a loss scale takes into account.

    Raises:
        InputError: no layer is named.
        ModelError: the model has no weight of a name.
    """

    def __init__(self, model: Editable, layers: Sequence[str], compute: Compute, divisor: int = 1) -> None:
        if not layers:
            raise InputError("no layer is named to take a gradient of")
        unknown = [layer for layer in layers if layer not in model.parameters]
        if unknown:
            raise ModelError(f"the model has no weight {unknown[0]!r}")
        self._compute, self._scale = compute, compute.scale(divisor)
        self._weights = {layer: model.parameters[layer] for layer in layers}
        self._total = {layer: torch.zeros_like(weight) for layer, weight in self._weights.items()}

    def add(self, scalar: Tensor) -> None:
        """Add the gradient of `scalar`; a tower that it does not depend on adds nothing."""
        with self._sums_as_grads():
            torch.autograd.backward(scalar * self._scale, inputs=list(self._weights.values()))

    def total(self, divisor: int = 1) -> Gradients:
        """The sum over all processes, divided by `divisor`; call it once.

        Raises:
            ModelError: it is not finite; the message names the tensor.
        """
        distributed.all_reduce(self._total)
        for layer, grad in self._total.items():
            if divisor * self._scale != 1:
                grad.div_(divisor * self._scale)
            if not torch.isfinite(grad).all():
                raise ModelError(f"the gradient of {layer} is not finite{self._advice()}")
        return self._total

    @contextmanager
    def _sums_as_grads(self) -> Iterator[None]:
        """The sums are the weights' `.grad`, which autograd adds to in place; the weights' own come back."""
        before = {layer: weight.grad for layer, weight in self._weights.items()}
        try:
            for layer, weight in self._weights.items():
                weight.grad = self._total[layer]
            yield
        finally:
            for layer, weight in self._weights.items():
                weight.grad = before[layer]

    def _advice(self) -> str:
        if self._compute.autocast is not torch.float16:
            return ""
        return f": float16 with loss scale {self._compute.loss_scale:g}, try a smaller one or bfloat16"


def mean_gradient(
    model: Editable,
    layers: Sequence[str],
    n: int,
    micro_batch: int,
    losses: Callable[[Tensor], Iterable[Tensor]],
    *,
    compute: Compute = FULL_PRECISION,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of a mean over n items, streamed; every process takes its share of them.

    Args:
        model: whose `layers` require gradients.
        layers: weight names.
        n: items of the whole set.
        micro_batch: items at a time; decides memory, not the result.
        losses: of the items in these rows (n,): scalars that add up to their mean loss, asked for one by one,
            so that the graph of one is gone before the next one is made.
        compute: precision, for the scale of the loss.
        watch: shown every scalar and its rows.
        progress: called with (items done, items).

    Raises:
        InputError: no layer is named.
        ModelError: a gradient is not finite (the message names the tensor), or the model has no weight of
            a name.
    """
    total = GradientSum(model, layers, compute, divisor=n)
    for rows in torch.split(torch.arange(n)[distributed.share(n)], micro_batch):
        if not len(rows):  # fewer items than processes
            continue
        for loss in losses(rows):
            if watch is not None:
                watch(loss, rows)
            total.add(loss * (len(rows) / n))
            del loss
        if progress is not None:
            progress(int(rows[-1]) + 1, n)
    return total.total()
