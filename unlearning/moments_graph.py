"""Which operation used a weight, and what went into it: read from the graph that autograd records.

The graph of a forward pass knows for every weight the operation that used it, the input that
operation kept for its own backward pass and, during a backward pass, the gradient of its output.
So nothing here depends on how a model is put together: a fused attention projection, a bare matrix
in `x @ P` and a layer called as a function look the same as a plain `nn.Linear`.  Autocast puts a cast
between a weight and the operation, which is looked through.

Shapes: P parts of a grouped convolution (1 for everything else), R rows, n inputs of an output.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contracts.errors import ModelError
from unlearning.graph import nodes

# Rows are copied out of what the graph keeps, and windows of a convolution are k * k times its input: so many
# values at a time (4 MiB), which is small beside a graph and large enough for a matrix product.
PIECE_VALUES = 2**20

_TRANSPOSED = "TBackward0"
_CAST = "ToCopyBackward0"
_MATRIX_PRODUCTS = {"MmBackward0": "_saved_self", "AddmmBackward0": "_saved_mat1"}
_CONVOLUTION = "ConvolutionBackward0"


@dataclass(frozen=True)
class Use:
    """One use of a weight as a linear map, in one forward pass.

    Attributes:
        layer: name of the weight.
        shape: of the weight.
        node: the operation's node in the graph.
        stored_by_input: the weight is stored (in, out) and used as x @ P; else (out, in, ...).
    """

    layer: str
    shape: torch.Size
    node: Any
    stored_by_input: bool

    @property
    def parts(self) -> int:
        """P, the groups of a convolution; 1 for everything else."""
        return self.node._saved_groups if self.node.name() == _CONVOLUTION else 1

    @property
    def width(self) -> int:
        """n, how many inputs an output of the map has."""
        # Not asked of the graph: a checkpointed block would run again to tell.
        return self.shape[0] if self.stored_by_input else self.shape[1:].numel()

    def inputs(self, wanted: Tensor) -> Iterator[Tensor]:
        """The rows `wanted` (bool, one per row) of what the weight was multiplied with, in pieces (P, R, n).

        In the precision they were multiplied in; at least one piece, perhaps of no rows.  Of a convolution a
        row is the window of one place of one image; only wanted windows are copied.
        """
        if self.node.name() != _CONVOLUTION:
            rows = getattr(self.node, _MATRIX_PRODUCTS[self.node.name()]).detach()
            for kept in torch.split(wanted.nonzero().flatten(), max(1, PIECE_VALUES // self.width)):
                yield rows[None, kept]
            return
        windows = self._windows(self.node._saved_input.detach())
        places = wanted.view(windows.shape[:3])
        size = max(1, PIECE_VALUES // windows[0].numel())
        for piece, kept in zip(torch.split(windows, size), torch.split(places, size), strict=True):
            rows = piece[kept]
            yield rows.reshape(len(rows), self.parts, self.width).transpose(0, 1)

    def output_gradients(self, gradient: Tensor) -> Tensor:
        """The gradient of the operation's output as rows (P, R, outputs of a part)."""
        if self.node.name() != _CONVOLUTION:
            return gradient[None]
        parts = gradient.flatten(2).reshape(
            len(gradient), self.parts, gradient.shape[1] // self.parts, gradient[0, 0].numel()
        )
        return parts.permute(1, 0, 3, 2).flatten(1, 2)

    def _windows(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to a view of the windows that a convolution sees, (B, Ho, Wo, C, kh, kw)."""
        kernel, stride, dilation = self.shape[2:], self.node._saved_stride, self.node._saved_dilation
        rows, columns = self.node._saved_padding
        padded = nn.functional.pad(images, (columns, columns, rows, rows))
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        windows = padded.unfold(2, reach[0], stride[0]).unfold(3, reach[1], stride[1])
        return windows[..., :: dilation[0], :: dilation[1]].permute(0, 2, 3, 1, 4, 5)


def uses(features: Tensor, weights: Mapping[str, nn.Parameter]) -> list[Use]:
    """Every use of the named weights as a linear map on the way to `features`.

    Args:
        features: result of a forward pass in which `weights` required gradients.
        weights: by name; those that do not enter `features` are absent from the result.

    Raises:
        ModelError: a weight is used in another way than as a matrix or convolution kernel.
    """
    names = {id(weight): name for name, weight in weights.items()}
    found = []
    for node in nodes([features]):
        for child, _ in node.next_functions:
            name, is_transposed = _weight_behind(child, names)
            if name is None or node.name() in (_TRANSPOSED, _CAST):
                continue
            shape = weights[name].shape
            if node.name() == _CONVOLUTION:
                found.append(Use(name, shape, node, stored_by_input=False))
            elif node.name() in _MATRIX_PRODUCTS:
                found.append(Use(name, shape, node, stored_by_input=not is_transposed))
            else:
                raise ModelError(
                    f"{name} is used by {node.name()}, which is no matrix product or convolution"
                )
    return found


def _weight_behind(node: Any, names: Mapping[int, str]) -> tuple[str | None, bool]:
    """The weight that enters at this node, if one does, and whether it is transposed on the way."""
    is_transposed = False
    while node is not None and node.name() in (_TRANSPOSED, _CAST):
        is_transposed ^= node.name() == _TRANSPOSED
        node = node.next_functions[0][0]
    return names.get(id(getattr(node, "variable", None))), is_transposed
