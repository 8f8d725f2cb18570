"""KID: its definition, its shares, and what it must not confuse."""

import numpy as np
import pytest

from contracts.errors import InputError
from unlearning.picture_quality import kernel_distance, kernel_distance_shares


def rows(n: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).normal(size=(n, 4))


def test_of_a_set_with_itself_it_is_negative() -> None:
    one = rows(50)
    # Unbiased: the pairs that are equal count on one side only.
    assert kernel_distance(one, one) < 0


def test_kid_is_about_zero_for_equal_distributions_and_grows_with_the_shift() -> None:
    same = [kernel_distance(rows(200, seed=2 * i), rows(200, seed=2 * i + 1)) for i in range(20)]
    assert abs(np.mean(same)) < 0.02
    shifts = [kernel_distance(rows(200), rows(200, mean=m, seed=1)) for m in (0.3, 0.6, 1.2)]
    assert 0.02 < shifts[0] < shifts[1] < shifts[2]


def test_kid_is_the_mean_over_pairs() -> None:
    one, other = rows(3), rows(5, seed=1)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 4 + 1) ** 3)

    own = [
        np.mean([k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]) for s in (one, other)
    ]
    between = np.mean([k(a, b) for a in one for b in other])
    assert kernel_distance(one, other) == pytest.approx(own[0] + own[1] - 2 * between)


@pytest.mark.parametrize("second", [rows(1), rows(5)[:, :3], np.full((3, 4), np.nan)])
def test_sets_that_cannot_be_compared_are_refused(second) -> None:
    with pytest.raises(InputError):
        kernel_distance(rows(5), second)


def test_shares_of_kid_are_its_jackknife_pseudo_values() -> None:
    one, other = rows(9), rows(7, mean=0.5, seed=1)
    whole = kernel_distance(one, other)
    without = [kernel_distance(np.delete(one, i, axis=0), other) for i in range(len(one))]
    shares = kernel_distance_shares(one, other)
    np.testing.assert_allclose(shares, 9 * whole - 8 * np.array(without))
    assert shares.mean() == pytest.approx(whole)
    with pytest.raises(InputError, match="at least 3"):
        kernel_distance_shares(one[:2], other)


def test_the_spread_of_the_shares_is_that_of_kid_from_draw_to_draw() -> None:
    # Treating single pairs as a sample would promise far too much.
    fixed = rows(60, mean=0.5, seed=999)
    draws = [rows(60, seed=i) for i in range(120)]
    spread = np.std([kernel_distance(own, fixed) for own in draws])
    told = np.mean([np.std(kernel_distance_shares(own, fixed), ddof=1) / 60**0.5 for own in draws])
    assert 0.75 * spread < told < 1.35 * spread
