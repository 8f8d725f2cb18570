"""Damped least squares: the change of a matrix that gives some keys other values and leaves the rest alone.

Of all D it is the one that minimises, with weights w_i, the retained keys' second moments R and damping e,

    sum_i w_i |D k_i - d_i|^2 + trace(D R D^T) + e |D|^2

namely D = sum_i d_i g_i^T with g_i = w_i (R + sum_j w_j k_j k_j^T + e I)^-1 k_i.  The g_i do not depend on
the d_i, so one solution serves every choice of values and, of matrices that read the same, every matrix.

Shapes: F keys, d inputs.
"""

import torch
from torch import Tensor

from contracts.errors import ModelError


def duals(keys: Tensor, weights: Tensor, retained: Tensor, damping: float) -> Tensor:
    """The g_i (F, d): wanted^T @ duals is D (o, d) for changes wanted (F, o).

    Of moments that are not numbers come g_i that are not: whose they are only the caller can say.

    Args:
        keys: (F, d) that are to give something else.
        weights: (F,) of the keys, not negative.
        retained: second moments (d, d) of the keys that are to give what they gave.
        damping: e, relative to the mean of the diagonal of `retained`.

    Raises:
        ModelError: the damped moments are not positive definite.
    """
    weighted = weights[:, None] * keys
    moments = retained + weighted.T @ keys
    moments.diagonal().add_(damping * retained.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(moments)
    if failed and bool(torch.isfinite(moments).all()):
        raise ModelError("the moments of the keys are not positive definite: raise the damping (epsilon)")
    return torch.cholesky_solve(weighted.T, factor).T
