"""Second moments of what enters a layer and of the gradients at what leaves it, as values.

Shapes: P parts of a grouped convolution (1 for everything else), o outputs and n inputs of a part.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixForm:
    """How a weight is read as `parts` matrices (o, n), one row per output.

    Attributes:
        parts: P.
        stored_by_input: the weight is stored (in, out) and used as x @ P; else (out, in, ...).
    """

    parts: int
    stored_by_input: bool

    def as_matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (P, o, n)."""
        if self.stored_by_input:
            return weight.T[None]
        return weight.reshape(self.parts, len(weight) // self.parts, -1)

    def as_weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `as_matrix`, contiguous."""
        if self.stored_by_input:
            return matrix[0].T.contiguous()
        return matrix.reshape(shape).contiguous()


@dataclass(frozen=True, eq=False)
class Moments:
    """What a layer's inputs and output gradients are like on a set.

    Attributes:
        form: how the weight is read as matrices.
        inputs: (P, n, n) mean of a a^T over rows.
        outputs: (P, o, o) mean of g g^T over rows, or None if it was not asked for.
        rows: how many rows counted; every place of an image and every token of a text is one.
    """

    form: MatrixForm
    inputs: Tensor
    outputs: Tensor | None
    rows: int


@dataclass(frozen=True, eq=False)
class MomentSums:
    """Second moments before the division by their rows: those of parts of a set add up to the set's.

    Attributes:
        form: how the weight is read as matrices.
        inputs: (P, n, n) sum of a a^T over rows.
        outputs: (P, o, o) sum of g g^T over rows, or None if it was not asked for.
        rows: how many rows counted.
    """

    form: MatrixForm
    inputs: Tensor
    outputs: Tensor | None
    rows: int

    def mean(self) -> Moments:
        """The moments of the set."""
        rows = max(self.rows, 1)
        return Moments(
            self.form, self.inputs / rows, None if self.outputs is None else self.outputs / rows, self.rows
        )

    def less(self, part: "MomentSums") -> "MomentSums":
        """The sums of the set without a part of it; of the inputs only.

        Output gradients belong to the batch they were taken in: those of a part by itself are others.
        """
        return MomentSums(self.form, self.inputs - part.inputs, None, self.rows - part.rows)
