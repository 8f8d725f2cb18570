"""A gradient turned into the step that disturbs a retain set least for what it gains.

Among all steps D along a matrix with the same first-order gain <g, D>, the one with the smallest
damped disturbance tr(D (C + eps e I) D^T) is D = g (C + eps e I)^-1 up to its length (Lagrange: the
gradient of the one is a multiple of the gradient of the other).  C is the second moment of the layer's
inputs on the retain set and e = mean(diag C), so eps is relative to an input's mean energy; the damping
keeps the step from running off into directions that the set happens not to show.

With the output factor G, changes of the output are weighed too: D = (G + eps_o e_o I)^-1 g (C + eps e I)^-1,
K-FAC's natural gradient (arXiv 1503.05671) with the retain set's curvature and the forget set's gradient.

Shapes: P parts of a grouped convolution, o outputs and n inputs of a part.
"""

from math import inf

import torch
from torch import Tensor

from contracts.errors import ModelError
from unlearning.moment_sums import Moments


class Preconditioner:
    """The factorised moments of one layer: 8 P n^2 bytes, and 8 P o^2 with the output factor.

    Everything is scaled so that large eps give the gradient itself:
    D = eps_o (G / e_o + eps_o I)^-1 g eps (C / e + eps I)^-1.  Solved in fp64 through Cholesky
    factors; an inverse is never formed.  A factor without energy (a layer that the retain set does
    not use at all) changes nothing.

    Args:
        layer: name of the weight, for messages.
        moments: on the retain set.
        epsilon: damping of the inputs, > 0, relative to their mean energy.
        output_epsilon: damping of the output factor, > 0, relative likewise; None leaves that factor out.

    Raises:
        ModelError: rounding leaves a damped moment indefinite: epsilon is too small.
    """

    def __init__(self, layer: str, moments: Moments, epsilon: float, output_epsilon: float | None) -> None:
        self._form = moments.form
        self._damping = _energy(moments.inputs) * epsilon
        self._inputs = _factor(layer, moments.inputs, epsilon)
        self._outputs = None
        if output_epsilon is not None:
            assert moments.outputs is not None
            self._outputs = _factor(layer, moments.outputs, output_epsilon)

    def direction(self, gradient: Tensor) -> Tensor:
        """The preconditioned gradient, of the weight's shape and type."""
        step = self._form.as_matrix(gradient).double()
        if self._inputs is not None:
            step = torch.cholesky_solve(step.mT, self._inputs).mT
        if self._outputs is not None:
            step = torch.cholesky_solve(step, self._outputs)
        return self._form.as_weight(step, gradient.shape).to(gradient.dtype)

    def gain(self, gradient: Tensor) -> float:
        """Squared first-order gain of a step along `direction`, per damped disturbance it makes.

        tr(g (C + eps e I)^-1 g^T); with the output factor <g, D> / (eps e), where disturbances count as
        G weighs them.  Infinite for a layer that the retain set does not use.
        """
        if self._inputs is None:
            return inf
        if self._outputs is None:
            # tr(g A^-1 g^T) = |L^-1 g^T|^2: half of what a direction takes.
            half = self._form.as_matrix(gradient).double().mT
            gained = torch.linalg.solve_triangular(self._inputs, half, upper=False).square().sum()
        else:
            gained = (gradient.double() * self.direction(gradient).double()).sum()
        return float(gained) / self._damping


def _energy(moment: Tensor) -> float:
    """mean(diag), the mean energy of a coordinate."""
    return float(moment.diagonal(dim1=-2, dim2=-1).double().mean())


def _factor(layer: str, moment: Tensor, epsilon: float) -> Tensor | None:
    """Cholesky factor of moment / (epsilon * energy) + I; None if there is no energy."""
    energy = _energy(moment)
    if energy == 0.0:
        return None
    damped = moment.double() / (energy * epsilon)
    damped.diagonal(dim1=-2, dim2=-1).add_(1.0)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        raise ModelError(f"the second moment of {layer} damped by {epsilon} is not positive definite")
    return factor
