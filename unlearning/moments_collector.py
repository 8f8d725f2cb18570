"""Sums of second moments that grow while a graph is differentiated; `unlearning.moments` says which and why.

Shapes: P parts of a grouped convolution (1 for everything else), R rows, o outputs and n inputs of a part.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from unlearning import distributed
from unlearning.moment_sums import MatrixForm, Moments, MomentSums
from unlearning.moments_graph import Use, uses

ROWS_PER_INPUT = 8
# Matrices and kernels.  Class tokens, learnt prompts and temperatures of heads have three axes.
MATRIX_AXES = (2, 4)


def matrices(parameters: Mapping[str, nn.Parameter], layers: Iterable[str]) -> dict[str, nn.Parameter]:
    """Those of the layers that second moments are taken of."""
    return {name: w for name in layers if (w := parameters[name]).ndim in MATRIX_AXES}


class Collector:
    """Running sums of the second moments; they grow in the backward pass of every watched forward pass.

    Args:
        weights: by layer.
        n_items: of the whole set, over all processes.
        widest: layers with more inputs are left out; None leaves none out.
        with_outputs: whether the output factor is wanted too.

    Raises:
        InputError: there are fewer items than processes, so that one would meet no layer.
    """

    def __init__(
        self, weights: Mapping[str, nn.Parameter], n_items: int, widest: int | None, with_outputs: bool
    ) -> None:
        distributed.check_enough(n_items)
        self._weights, self._n_items = weights, n_items
        self._widest, self._with_outputs = widest, with_outputs
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._forms: dict[str, MatrixForm] = {}

    def watch(self, outcome: Tensor, items: Tensor) -> None:
        """Count, when the graph behind the outcome of these items is differentiated, what passed through."""
        for use in uses(outcome, self._weights):
            if self._widest is not None and use.width > self._widest:
                continue
            self._forms[use.layer] = MatrixForm(use.parts, use.stored_by_input)
            handles: list[Any] = []

            def add(gradients: Sequence[Tensor], use: Use = use, handles: list[Any] = handles) -> None:
                handles.pop().remove()  # node and hook would keep each other alive
                self._add(use, gradients[0], items)

            handles.append(use.node.register_prehook(add))

    def all_reduce(self) -> None:
        """Add up what all processes collected; each must have met every layer."""
        rows = {
            layer: self._inputs[layer].new_tensor(n, dtype=torch.int64) for layer, n in self._rows.items()
        }
        for sums in (rows, self._inputs, self._outputs):
            distributed.all_reduce(sums)
        self._rows = {layer: int(n) for layer, n in rows.items()}

    def sums(self) -> dict[str, MomentSums]:
        """The sums so far, of the layers that were used.

        Raises:
            ModelError: one is not finite.
        """
        found = {}
        for layer, rows in self._rows.items():
            inputs, outputs = self._inputs.pop(layer), self._outputs.pop(layer, None)
            if not all(bool(torch.isfinite(m).all()) for m in (inputs, outputs) if m is not None):
                raise ModelError(f"the second moment of what enters or leaves {layer} is not finite")
            found[layer] = MomentSums(self._forms[layer], inputs, outputs, rows)
        return found

    def means(self) -> dict[str, Moments]:
        """What all processes collected, as means; each must have met every layer.

        Raises:
            ModelError: one is not finite.
        """
        self.all_reduce()
        sums = self.sums()
        return {layer: sums.pop(layer).mean() for layer in list(sums)}

    def _add(self, use: Use, gradient: Tensor, items: Tensor) -> None:
        gradients = use.output_gradients(gradient)
        # Of a grouped convolution a place counts for all parts if a gradient reaches one.
        counts = (gradients != 0).any(dim=2).any(dim=0)
        if gradient.ndim == 4:
            counts &= self._sample(use, items, gradient[0, 0].numel()).to(counts.device)
        self._rows[use.layer] = self._rows.get(use.layer, 0) + int(counts.sum())
        if self._with_outputs:
            _add_outer(self._outputs, use.layer, gradients[:, counts])
        for rows in use.inputs(counts):
            _add_outer(self._inputs, use.layer, rows)

    def _sample(self, use: Use, items: Tensor, n_places: int) -> Tensor:
        """Which places of these images are used, (len(items) * n_places,): an image's are always the same."""
        every = max(1, self._n_items * n_places // (ROWS_PER_INPUT * use.width))
        return ((items[:, None] + torch.arange(n_places)) % every == 0).flatten()


def _add_outer(sums: dict[str, Tensor], layer: str, rows: Tensor) -> None:
    """sums[layer] += the sum of r r^T over the rows (P, R, n), in no less than fp32."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if layer not in sums:
        sums[layer] = rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])
    sums[layer].baddbmm_(rows.mT, rows)
