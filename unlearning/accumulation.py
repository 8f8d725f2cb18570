"""Sums of gradients in fp32: over micro-batches, then over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from contracts.errors import ModelError
from unlearning import distributed
from unlearning.encoders import Compute
from unlearning.families.clip import ClipModel

Gradients = dict[str, Tensor]


class GradientSum:
    """Running sum of the gradients of scalars, for the named layers.

    Raises:
        ModelError: the model has no weight of a name.
    """

    def __init__(self, model: ClipModel, layers: Sequence[str], compute: Compute) -> None:
        unknown = [layer for layer in layers if layer not in model.parameters]
        if unknown:
            raise ModelError(f"the model has no weight {unknown[0]!r}")
        self._compute = compute
        self._weights = [model.parameters[layer] for layer in layers]
        self._total = {layer: torch.zeros_like(model.parameters[layer]) for layer in layers}

    def add(self, scalar: Tensor, divisor: int = 1) -> None:
        """Add the gradient of `scalar`; a tower that it does not depend on adds nothing.

        Args:
            scalar: what to differentiate.
            divisor: what its loss was divided by, which a loss scale takes into account.
        """
        scale = self._compute.scale(divisor)
        grads = torch.autograd.grad(scalar * scale, self._weights, allow_unused=True)
        for total, grad in zip(self._total.values(), grads, strict=True):
            if grad is not None:
                total.add_(grad, alpha=1 / scale)

    def total(self, divisor: int = 1) -> Gradients:
        """The sum over all processes, divided by `divisor`; call it once.

        Raises:
            ModelError: it is not finite; the message names the tensor.
        """
        distributed.all_reduce(self._total)
        for layer, grad in self._total.items():
            if divisor != 1:
                grad.div_(divisor)
            if not torch.isfinite(grad).all():
                raise ModelError(f"the gradient of {layer} is not finite{self._advice()}")
        return self._total

    def _advice(self) -> str:
        if self._compute.autocast is not torch.float16:
            return ""
        return f": float16 with loss scale {self._compute.loss_scale:g}, try a smaller one or bfloat16"
