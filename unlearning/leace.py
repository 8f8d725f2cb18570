"""Least-squares concept erasure in closed form: LEACE (Belrose et al., arXiv 2306.03819, theorem 4.3).

Of all affine maps r after which no linear classifier predicts a label z from r(x) better than a
constant does, LEACE is the one that moves x least in mean square:

    r(x) = x - P (x - mu),    P = W^+ U U^T W,    W = cov(x)^(-1/2),  U = orthonormal basis of W cov(x, z)

It needs second moments only, which are streamed.  "No linear classifier" is exactly cov(r(x), z) = 0, and
whatever constant is added keeps it so: a layer without a bias can guard as well, with the linear map
that moves x least (`affine=False`: mu = 0, and x is whitened about zero instead of its mean).

The covariance can be shrunk towards its mean diagonal, (1 - s) C + s tr(C)/d I: from few samples C^-1
mostly amplifies noise.  cov(r(x), z) = 0 on the samples holds at every s; from s = 0 (LEACE) to s = 1
(orthogonal projection off the class means) only the change is measured differently.

All in fp64.  Shapes: n samples, d features, k labels, r <= min(d, k) rank of the erasure.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from contracts.errors import InputError, ModelError

# Canonical correlations below it are rounding; sampling noise alone, 1/sqrt(n), is far above it.
SMALLEST_CORRELATION = 1e-7
# Share of the second moment below which a direction of the labels is rounding (all classes one-hot add to 1).
LABEL_TOLERANCE = 1e-10


class LabelledMoments:
    """Means and covariances of features x and labels z over a stream of samples.

    Batches are merged about their own means (Chan, Golub and LeVeque 1983), so large means cost no digits
    and the division into batches decides nothing but the last ones.  Covariances are biased (1/n).

    Args:
        n_features: d.
        n_labels: k.
        device: where the sums are kept.
    """

    def __init__(self, n_features: int, n_labels: int, device: torch.device | str = "cpu") -> None:
        self.n, self.n_features = 0, n_features
        width = n_features + n_labels
        # One joint vector (x, z): its covariance holds cov(x), cov(x, z) and cov(z) as blocks.
        self._mean = torch.zeros(width, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    def add(self, x: Tensor, z: Tensor) -> Self:
        """Take in samples x (n, d) with labels z (n, k); returns itself."""
        joint = torch.cat([x.double(), z.to(x.device).double()], dim=1)
        if len(joint) == 0:
            return self
        mean = joint.mean(dim=0)
        own, shift, n = joint - mean, mean - self._mean, self.n + len(joint)
        self._scatter += own.T @ own + torch.outer(shift, shift) * (self.n * len(joint) / n)
        self._mean += shift * (len(joint) / n)
        self.n = n
        return self

    @property
    def mean_x(self) -> Tensor:
        """(d,)."""
        return self._mean[: self.n_features]

    @property
    def mean_z(self) -> Tensor:
        """(k,)."""
        return self._mean[self.n_features :]

    @property
    def cov_xx(self) -> Tensor:
        """(d, d)."""
        return self._scatter[: self.n_features, : self.n_features] / self.n

    @property
    def cov_xz(self) -> Tensor:
        """(d, k)."""
        return self._scatter[: self.n_features, self.n_features :] / self.n

    @property
    def cov_zz(self) -> Tensor:
        """(k, k)."""
        return self._scatter[self.n_features :, self.n_features :] / self.n


@dataclass(frozen=True, eq=False)
class Erasure:
    """The map r(x) = x - P (x - centre), P = left @ right of rank r.

    Attributes:
        left: (d, r).
        right: (r, d); right @ left is the identity, so erasing twice is erasing once.
        centre: (d,) the mean of x, or zero for a linear map.
        correlations: (r,) canonical correlations of x (shrunk) and z, falling: how well each erased
            direction tells the labels.
    """

    left: Tensor
    right: Tensor
    centre: Tensor
    correlations: Tensor

    def folded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What the map, put before a linear layer, adds to it: W r(x) + b = (W + dW) x + (b + db).

        Args:
            weight: W, (out, d).

        Returns:
            dW (out, d) and db (out,), in fp64; db is zero for a linear map.
        """
        read = weight.detach().double() @ self.left
        return -read @ self.right, read @ (self.right @ self.centre)


def fit_erasure(moments: LabelledMoments, shrinkage: float = 0.0, *, affine: bool = True) -> Erasure:
    """The erasure of z from x; of rank 0 where x does not tell z at all.

    Args:
        moments: of at least two samples.
        shrinkage: s in 0..1, see the module.
        affine: False for the map without a constant.

    Raises:
        InputError: the shrinkage is out of its range, there are fewer than two samples, or one label.
        ModelError: a feature is not finite.
    """
    if not 0.0 <= shrinkage <= 1.0:
        raise InputError(f"shrinkage must lie in 0..1, got {shrinkage}")
    if moments.n < 2:
        raise InputError(f"an erasure needs at least 2 samples, got {moments.n}")
    cov, mean = moments.cov_xx, moments.mean_x
    if not (torch.isfinite(cov).all() and torch.isfinite(moments.cov_xz).all()):
        raise ModelError("the features to erase a concept from are not finite")
    label_roots, _ = _inverse_root(moments.cov_zz, moments.mean_z, LABEL_TOLERANCE)
    if label_roots is None:
        raise InputError(f"all {moments.n} samples have the same label: there is nothing to tell apart")
    d = len(cov)
    spread = (1.0 - shrinkage) * cov + shrinkage * cov.diagonal().mean() * torch.eye(
        d, dtype=cov.dtype, device=cov.device
    )
    if not affine:
        spread = spread + torch.outer(mean, mean)
    # Features come from fp32: a direction with less variance than their rounding is no direction, and what
    # is divided by its root could not be multiplied back in the fp32 layer that the map is folded into.
    whiten, unwhiten = _inverse_root(spread, mean, d * torch.finfo(torch.float32).eps ** 2)
    centre = mean if affine else torch.zeros_like(mean)
    if whiten is None or unwhiten is None:
        return Erasure(cov.new_zeros(d, 0), cov.new_zeros(0, d), centre, cov.new_zeros(0))
    basis, correlations, _ = torch.linalg.svd(whiten @ moments.cov_xz @ label_roots, full_matrices=False)
    basis = basis[:, correlations > SMALLEST_CORRELATION]
    return Erasure(unwhiten @ basis, basis.T @ whiten, centre, correlations[: basis.shape[1]])


def _inverse_root(
    spread: Tensor, mean: Tensor, tolerance: float
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """(spread^+)^(1/2) and spread^(1/2) on its range; None where the range is empty.

    Eigenvalues up to `tolerance` times (the largest + |mean|^2), a bound of the second moment, count as zero.
    """
    values, vectors = torch.linalg.eigh((spread + spread.T) / 2)
    kept = values > tolerance * (values[-1] + mean @ mean)
    if not bool(kept.any()):
        return None, None
    roots, vectors = values[kept].sqrt(), vectors[:, kept]
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T
