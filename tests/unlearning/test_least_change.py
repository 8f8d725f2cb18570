"""The least change of a matrix: against an oracle, and what makes it the least."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize, nnls
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning.least_change import MOST_KEYS, descend, least_change
from unlearning.least_squares import duals


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moments_of(kept: Tensor) -> Tensor:
    return kept.T @ kept / len(kept)


def moved(keys: Tensor, wanted: Tensor, change: Tensor) -> Tensor:
    """Of each key, the share of the wanted move that is made."""
    return ((keys @ change.T) * wanted).sum(dim=1) / wanted.square().sum(dim=1)


def disturbance(change: Tensor, moments: Tensor) -> float:
    return float(((change @ moments) * change).sum())


@given(seed=st.integers(0, 10_000), n=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_the_dual_is_solved_as_by_non_negative_least_squares(seed: int, n: int) -> None:
    rows, wanted = drawn(n, n + 3, seed=seed), drawn(n, seed=seed + 1).abs() + 0.1
    gram = rows @ rows.T + 0.05 * torch.eye(n, dtype=torch.float64)
    factor = torch.linalg.cholesky(gram)
    # min |L^T a - L^-1 b|^2 over a >= 0
    right = torch.linalg.solve_triangular(factor, wanted[:, None], upper=False)[:, 0]
    expected = torch.as_tensor(nnls(factor.T.numpy(), right.numpy())[0])

    def value(a: Tensor) -> float:
        return float(a @ gram @ a / 2 - wanted @ a)

    found = descend(gram, wanted)
    assert bool((found >= 0).all())
    assert value(found) == pytest.approx(value(expected), rel=1e-3)


def test_it_is_the_smallest_change_that_moves_every_key() -> None:
    keys, wanted, kept = drawn(3, 5, seed=0), drawn(3, 2, seed=1), drawn(40, 5, seed=2)
    moments = moments_of(kept)
    damped = moments + 1e-3 * float(moments.diagonal().mean()) * torch.eye(5, dtype=torch.float64)
    found = least_change(keys, wanted, moments, damping=1e-3, slack=1e-9)
    assert float(moved(keys, wanted, found).min()) > 0.998
    oracle = minimize(
        lambda x: disturbance(torch.as_tensor(x).reshape(2, 5), damped),
        torch.zeros(10, dtype=torch.float64).numpy(),
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda x: moved(keys, wanted, torch.as_tensor(x).reshape(2, 5)).numpy() - 1,
        },
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert oracle.success
    assert disturbance(found, damped) == pytest.approx(oracle.fun, rel=5e-3)


def test_it_disturbs_less_than_least_squares_that_move_as_far() -> None:
    keys, wanted, kept = drawn(12, 16, seed=0), drawn(12, 6, seed=1), drawn(200, 16, seed=2)
    moments = moments_of(kept)
    squares = wanted.T @ duals(keys, torch.full((12,), 100.0, dtype=torch.float64), moments, 1e-3)
    squares = squares / moved(keys, wanted, squares).min()
    least = least_change(keys, wanted, moments, damping=1e-3, slack=1e-6)
    least = least / moved(keys, wanted, least).min()
    assert disturbance(least, moments) < 0.9 * disturbance(squares, moments)


def test_nothing_is_asked_of_a_key_that_another_one_moves_far_enough() -> None:
    """Where directions agree, the key that lacks most decides and the change is its own alone."""
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    both, first = (least_change(keys[:n], wanted[:n], eye, damping=1e-6, slack=1e-6) for n in (2, 1))
    torch.testing.assert_close(both, first)


def test_keys_that_contradict_each_other_share_the_slack() -> None:
    keys = torch.ones(2, 2, dtype=torch.float64)
    wanted = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    change = least_change(keys, wanted, torch.eye(2, dtype=torch.float64), damping=1e-6, slack=0.1)
    assert bool(torch.isfinite(change).all())
    torch.testing.assert_close(keys @ change.T, torch.zeros(2, 2, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [1.0, 7.0])
@pytest.mark.parametrize("slack", [0.1, 0.5])
def test_a_key_by_itself_moves_as_far_as_its_slack_allows(slack: float, size: float) -> None:
    """Whatever its length: slack is measured by what moving it costs."""
    key, wanted = size * drawn(1, 4, seed=0), drawn(1, 3, seed=1)
    change = least_change(key, wanted, moments_of(drawn(30, 4, seed=2)), damping=1e-3, slack=slack)
    assert float(moved(key, wanted, change)) == pytest.approx(1 / (1 + slack), rel=2e-3)


@pytest.mark.parametrize("slack", [0.01, 0.1])
def test_keys_that_partly_contradict_each_other_end_at_the_optimum_too(slack: float) -> None:
    keys = drawn(1, 8, seed=0) + 0.3 * drawn(24, 8, seed=1)
    along = torch.where(torch.arange(24)[:, None] % 2 == 0, 1.0, -1.0) * drawn(1, 3, seed=2) + 0.3 * drawn(
        24, 3, seed=3
    )
    unit = torch.nn.functional.normalize(along, dim=1)
    gram = (unit @ unit.T) * (keys @ keys.T)
    gram.diagonal().mul_(1 + slack)
    wanted = drawn(24, seed=4).abs() + 0.5
    found = descend(gram, wanted)
    factor = torch.linalg.cholesky(gram)
    right = torch.linalg.solve_triangular(factor, wanted[:, None], upper=False)[:, 0]
    oracle = torch.as_tensor(nnls(factor.T.numpy(), right.numpy())[0])

    def value(a: Tensor) -> float:
        return float(a @ gram @ a / 2 - wanted @ a)

    assert value(found) == pytest.approx(value(oracle), rel=1e-4)


def test_moments_that_cannot_be_inverted_are_an_error() -> None:
    keys = drawn(2, 3, seed=0)
    with pytest.raises(ModelError, match="not positive definite: raise the damping"):
        least_change(keys, drawn(2, 2, seed=1), -torch.eye(3, dtype=torch.float64), damping=0.1, slack=0.1)


def test_too_many_keys_are_refused_before_any_work() -> None:
    keys = torch.zeros(1, 1).expand(MOST_KEYS + 1, 1)
    with pytest.raises(InputError, match=f"{MOST_KEYS + 1} keys are more than {MOST_KEYS}: show fewer views"):
        least_change(keys, keys, torch.eye(1), damping=1.0, slack=1.0)
