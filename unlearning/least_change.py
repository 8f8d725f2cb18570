"""The smallest change of a matrix that moves the outputs of some keys at least so far, and others hardly.

Of all D with u_i . D k_i >= b_i for every key k_i, up to a slack that costs, the one that disturbs what the
retained keys give least:

    minimise   trace(D (R + e I) D^T) / 2 + sum_i s_i^2 / (2 r G_ii)     subject to   u_i . D k_i >= b_i - s_i

with R the second moments of the retained keys.  Unlike damped least squares (`unlearning.least_squares`) it
asks nothing of a key that is moved far enough already, and nothing across the direction u_i: that leaves
retained outputs more room.  It is the problem of a support vector machine with squared slack, and solved like
one in its dual, by coordinate descent (Hsieh et al., ICML 2008):

    D = sum_i a_i u_i (P k_i)^T,   P = (R + e I)^-1,   G_ij = (u_i . u_j) (k_i . P k_j)
    minimise   a^T (G + r diag G) a / 2 - b . a     subject to   a >= 0

Shapes: F keys, d inputs and o outputs of the matrix.
"""

import torch
from torch import Tensor

from contracts.errors import InputError, ModelError

# Sweeps over all keys end when no key misses its condition of optimality by more than this share of what is
# wanted of it.  Keys that contradict each other may take longer: after so many sweeps it is as good as it is,
# and what is lacking shows in what the keys are moved.
PRECISION, SWEEPS = 1e-3, 1000
# Two matrices of F x F are kept, 16 F^2 bytes: 1 GiB.
MOST_KEYS = 8192


def check_number(keys: int) -> None:
    """Refuse more keys than fit.

    Raises:
        InputError: there are more than `MOST_KEYS`.
    """
    if keys > MOST_KEYS:
        raise InputError(f"{keys} keys are more than {MOST_KEYS}: show fewer views, or fewer items")


def least_change(keys: Tensor, wanted: Tensor, retained: Tensor, *, damping: float, slack: float) -> Tensor:
    """D (o, d), in the precision of its arguments.

    Args:
        keys: (F, d) whose outputs are to move.
        wanted: (F, o), none of them zero: u_i and b_i are its direction and its length.
        retained: second moments (d, d) of the keys whose outputs are to stay.
        damping: e, relative to the mean of the diagonal of `retained`.
        slack: r, positive; a key by itself makes 1 / (1 + r) of its move.

    Raises:
        InputError: see `check_number`.
        ModelError: the damped moments are not positive definite.
    """
    check_number(len(keys))
    lengths = wanted.norm(dim=1)
    along = wanted / lengths[:, None]
    moments = retained.clone()
    moments.diagonal().add_(damping * retained.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(moments)
    if failed:
        raise ModelError("the moments of what is kept are not positive definite: raise the damping (epsilon)")
    solved = torch.cholesky_solve(keys.T, factor).T
    gram = along @ along.T
    gram.mul_(keys @ solved.T)
    gram.diagonal().mul_(1.0 + slack)
    change: Tensor = (descend(gram, lengths)[:, None] * along).T @ solved
    return change


def descend(gram: Tensor, wanted: Tensor) -> Tensor:
    """a >= 0 (F,) that minimises a^T gram a / 2 - wanted . a; each in turn is set to its best.

    Args:
        gram: (F, F), symmetric and positive definite.
        wanted: (F,) positive.
    """
    # One number at a time: on a GPU every step would wait for a kernel.
    gram, lengths, device = gram.cpu(), wanted.cpu(), wanted.device
    shares, moved = torch.zeros_like(lengths), torch.zeros_like(lengths)
    for _ in range(SWEEPS):
        for i in range(len(lengths)):
            best = max(0.0, float(shares[i] + (lengths[i] - moved[i]) / gram[i, i]))
            step = best - float(shares[i])
            if step:
                moved.add_(gram[i], alpha=step)
                shares[i] = best
        lacking = (lengths - moved) / lengths
        missed = torch.where(shares > 0, lacking.abs(), lacking.clamp(min=0.0))
        if float(missed.max()) < PRECISION:
            break
    return shares.to(device)
