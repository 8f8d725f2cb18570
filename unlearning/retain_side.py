"""What a request's retain set says of the weights: the gradient, and second moments in the same pass."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from contracts.errors import InputError
from contracts.values import Method
from unlearning.families import Progress, Request
from unlearning.moment_sums import Moments
from unlearning.moments_collector import Collector, matrices
from unlearning.retain_statistics import Wanted


def retain_gradient_and_moments(
    request: Request,
    model: Any,
    layers: Sequence[str],
    method: Method,
    *,
    widest: int,
    with_outputs: bool,
    wanted: Wanted | None,
    progress: Progress,
) -> tuple[dict[str, Tensor], dict[str, Moments]]:
    """The request's retain gradient, and second moments of what enters (and leaves) layers that are matrices.

    Moments come in the order of the backward pass.  Where the request was handed statistics of the whole
    retain set, both are taken from there.

    Args:
        request: whose retain set it is.
        model: at the weights to measure at; they stay as they are.
        layers: weight names.
        method: names the batch sizes.
        widest: layers with more inputs have no moments taken.
        with_outputs: whether the output factor is wanted too.
        wanted: statistics of the whole retain set that would do.
        progress: told how far it is.

    Raises:
        InputError: what is known was measured for another method or seed, or the request's own gradient
            cannot be taken.
        ModelError: a gradient or a moment is not finite (the message names the tensor).
    """
    known = request.known_retain
    if known is not None:
        if known.statistics.wanted != wanted:
            raise InputError("the known retain statistics are not those that this method and seed ask for")
        return known.statistics.gradient, known.moments(model, layers, method.micro_batch)
    collector = Collector(matrices(model.parameters, layers), request.n_retained, widest, with_outputs)
    gradient = request.retain_gradient(model, layers, method, progress, collector.watch)
    return gradient, collector.means()
