"""Properties of the preconditioned direction on drawn moments: rank-deficient, repeated, of any scale."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contracts.errors import ModelError
from unlearning.moment_sums import MatrixForm, Moments
from unlearning.moments_solve import Preconditioner

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)


class Problem:
    """A gradient (P * o, n) and moments of few or many rows; `epsilon` damps both factors."""

    def __init__(self, seed: int, parts: int, o: int, n: int, rows: int, spread: float, epsilon: float):
        draw = torch.Generator().manual_seed(seed)
        self.epsilon, self.parts, self.draw = epsilon, parts, draw
        self.gradient = torch.randn(parts * o, n, generator=draw, dtype=torch.float64)
        # Energies of coordinates differ by up to `spread`; fewer rows than inputs leave the rank short.
        self.inputs = self._moment(rows, n, spread)
        self.outputs = self._moment(rows, o, spread)

    def _moment(self, rows: int, width: int, spread: float) -> Tensor:
        a = torch.randn(self.parts, rows, width, generator=self.draw)
        a *= torch.logspace(0, -math.log10(spread) / 2, width)
        return a.mT @ a / rows

    def solver(self, with_outputs: bool = False, unit: float = 1.0) -> Preconditioner:
        form = MatrixForm(self.parts, stored_by_input=False)
        moments = Moments(form, self.inputs * unit, self.outputs * unit, 1)
        return Preconditioner("w", moments, self.epsilon, self.epsilon if with_outputs else None)

    def damped_change(self, step: Tensor, with_outputs: bool) -> Tensor:
        """Half the slope of the damped disturbance tr(G D C D^T) at a step: G D C, with G = I if left out."""
        d = step.view(self.parts, -1, step.shape[1])
        changed = d @ damped(self.inputs, self.epsilon)
        if with_outputs:
            changed = damped(self.outputs, self.epsilon) @ changed
        return changed.view_as(step)


def damped(moment: Tensor, epsilon: float) -> Tensor:
    energy = moment.double().diagonal(dim1=-2, dim2=-1).mean()
    return moment.double() + epsilon * energy * torch.eye(moment.shape[-1], dtype=torch.float64)


PROBLEMS = st.builds(
    Problem,
    seed=st.integers(0, 10**6),
    parts=st.sampled_from([1, 1, 2]),
    o=st.integers(1, 4),
    n=st.integers(2, 7),  # with one entry in all there is no other step
    rows=st.integers(1, 9),
    spread=st.sampled_from([1.0, 1e3, 1e6]),
    epsilon=st.sampled_from([1e-3, 1e-2, 1.0, 100.0]),
)


@PROPERTY
@given(PROBLEMS, st.booleans())
def test_no_other_step_of_equal_gain_disturbs_less(problem: Problem, with_outputs: bool) -> None:
    g = problem.gradient
    d = problem.solver(with_outputs).direction(g)
    slope = problem.damped_change(d, with_outputs)
    cost = float((d * slope).sum())
    assert float((g * d).sum()) > 0, "it ascends the forget loss"
    for size in (1e-3, 1.0, 30.0):
        other = torch.randn(g.shape, generator=problem.draw, dtype=torch.float64) * size * d.norm()
        other -= g * (g * other).sum() / (g * g).sum()  # the same first-order gain
        aside = abs(float((slope * other).sum()))
        assert aside <= 1e-7 * float(slope.norm() * other.norm()), "the disturbance has no slope left"
        there = d + other
        assert float((there * problem.damped_change(there, with_outputs)).sum()) >= cost * (1 - 1e-9)


@PROPERTY
@given(PROBLEMS, st.booleans(), st.integers(-60, 60), st.integers(-60, 60))
def test_units_of_inputs_and_loss_change_no_bit_of_the_direction(
    problem: Problem, with_outputs: bool, moment_unit: int, gradient_unit: int
) -> None:
    # Activations of 1e-9 or 1e9 are legitimate; powers of two are exact.  Catches an absolute damping.
    d = problem.solver(with_outputs).direction(problem.gradient)
    scaled = problem.solver(with_outputs, unit=2.0**moment_unit)
    assert torch.equal(scaled.direction(problem.gradient * 2.0**gradient_unit), d * 2.0**gradient_unit)
    gain = problem.solver(with_outputs).gain(problem.gradient)
    assert scaled.gain(problem.gradient) * 2.0**moment_unit == pytest.approx(gain, rel=1e-12)


@PROPERTY
@given(PROBLEMS, st.booleans())
def test_the_direction_is_linear_and_no_longer_than_the_gradient(
    problem: Problem, with_outputs: bool
) -> None:
    # No longer, so it cannot overflow where the gradient did not.
    solver, g = problem.solver(with_outputs), problem.gradient
    other = torch.randn(g.shape, generator=problem.draw, dtype=torch.float64)
    torch.testing.assert_close(
        solver.direction(g - 3.0 * other),
        solver.direction(g) - 3.0 * solver.direction(other),
        rtol=1e-6,
        atol=1e-7,
    )
    assert float(solver.direction(g).norm()) <= float(g.norm()) * (1 + 1e-8)
    assert not solver.direction(torch.zeros_like(g)).any()
    assert solver.gain(torch.zeros_like(g)) == 0.0


@PROPERTY
@given(PROBLEMS)
def test_what_the_retain_set_never_shows_is_free(problem: Problem) -> None:
    # A coordinate with no energy: the step along it stays, along the others it shrinks.
    problem.inputs[:, -1, :] = problem.inputs[:, :, -1] = 0.0
    d = problem.solver().direction(problem.gradient)
    torch.testing.assert_close(d[:, -1], problem.gradient[:, -1])
    problem.inputs.zero_()
    free = problem.solver()
    assert torch.equal(free.direction(problem.gradient), problem.gradient)
    assert free.gain(problem.gradient) == math.inf


@PROPERTY
@given(PROBLEMS, st.sampled_from([math.nan, math.inf]), st.integers(0, 10**6))
def test_a_moment_that_is_not_finite_never_gives_a_direction(
    problem: Problem, value: float, place: int
) -> None:
    row, column = divmod(place % problem.inputs[0].numel(), problem.inputs.shape[-1])
    problem.inputs[0, row, column] = problem.inputs[0, column, row] = value
    with pytest.raises(ModelError, match="second moment of w"):
        problem.solver()
