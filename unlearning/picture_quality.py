"""How far one set of pictures is from another: KID on the features of a net that ships.

    KID  unbiased squared maximum mean discrepancy with the kernel (x y / F + 1)^3 (arXiv 1801.01401);
         may be negative where sets do not differ.

The usual net is an Inception of ImageNet, whose weights are not at hand and which knows little of small
drawings.  Here features are those of the independent judge (`unlearning.judge`: pooled, before its object
head), so figures compare models judged by the same net and with nothing that is published elsewhere.
UnlearnCanvas reports FID, which is biased upwards on sets as small as a verdict's; so it is not here.

Shapes: N and M pictures, F features.
"""

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InputError

Features = NDArray[np.float64]


def kernel_distance(first: Features, second: Features) -> float:
    """KID of features (N, F) and (M, F), over all pairs at once.

    Raises:
        InputError: fewer than two rows, different widths, or features that are not finite.
    """
    _check(first, second)
    within = [_kernel(rows, rows) for rows in (first, second)]
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return float(own[0] + own[1] - 2 * _kernel(first, second).mean())


def kernel_distance_shares(first: Features, second: Features) -> Features:
    """What each picture of the first set contributes to KID: jackknife pseudo-values (N,), their mean is KID.

    Tukey's device: n KID - (n - 1) KID without the picture.  As KID is a mean over pairs, single pairs
    are no sample; the pseudo-values may be treated as one (Efron and Tibshirani 1993, chapter 11), so that
    a difference of two KIDs on pictures of the same prompts gets an interval.  The second set is fixed.

    Raises:
        InputError: see `kernel_distance`; or fewer than three pictures.
    """
    _check(first, second)
    n = len(first)
    if n < 3:
        raise InputError(f"shares of a distance need at least 3 pictures, got {n}")
    kernel, across = _kernel(first, first), _kernel(first, second).mean(axis=1)
    own = kernel.sum(axis=1) - np.diag(kernel)
    whole = own.sum() / (n * (n - 1)) - 2 * across.mean()
    without = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (n * across.mean() - across) / (n - 1)
    theirs = _kernel(second, second)
    constant = (theirs.sum() - np.trace(theirs)) / (len(second) * (len(second) - 1))
    shares: Features = n * whole - (n - 1) * without + constant
    return shares


def _kernel(first: Features, second: Features) -> Features:
    kernel: Features = (first @ second.T / first.shape[1] + 1.0) ** 3
    return kernel


def _check(first: Features, second: Features) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features must be (N, F) and (M, F), got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise InputError(f"two sets of at least 2 pictures are needed, got {len(first)} and {len(second)}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise InputError("features that are not finite have no distance")
