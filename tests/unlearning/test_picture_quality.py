"""FID and KID: closed forms, and what they must not confuse."""

import numpy as np
import pytest

from contracts.errors import InputError
from unlearning.picture_quality import (
    frechet_distance,
    frechet_of_gaussians,
    kernel_distance,
    kernel_distance_shares,
)


def rows(n: int, mean: float = 0.0, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).normal(size=(n, 4))


def test_identical_sets_have_no_distance() -> None:
    one = rows(50)
    assert frechet_distance(one, one[::-1]) == pytest.approx(0.0, abs=1e-9)
    # Unbiased: of a set with itself the pairs that are equal count on one side only.
    assert kernel_distance(one, one) < 0


def test_the_distance_of_gaussians_is_the_closed_form() -> None:
    eye, mean = np.eye(3), np.zeros(3)
    assert frechet_of_gaussians(mean, eye, mean + 2.0, eye) == pytest.approx(12.0)
    # Commuting covariances: the sum of squared differences of the deviations.
    assert frechet_of_gaussians(mean, 4 * eye, mean, 9 * eye) == pytest.approx(3.0)
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    s1, s2 = np.diag([1.0, 4.0, 9.0]), turn @ np.diag([1.0, 2.0, 3.0]) @ turn.T
    from scipy.linalg import sqrtm

    expected = np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    assert frechet_of_gaussians(mean, s1, mean, s2) == pytest.approx(expected)
    assert frechet_of_gaussians(mean, s2, mean, s1) == pytest.approx(expected)


def test_large_samples_come_near_the_closed_form_and_singular_covariances_are_no_trouble() -> None:
    assert frechet_distance(rows(20_000), rows(20_000, mean=1.0, scale=2.0, seed=1)) == pytest.approx(
        8.0, abs=0.3
    )
    flat = np.repeat(rows(10)[:, :1], 4, axis=1)
    assert frechet_distance(flat, flat + 1.0) == pytest.approx(4.0)


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


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("second", [rows(1), rows(5)[:, :3], np.full((3, 4), np.nan)])
def test_sets_that_cannot_be_compared_are_refused(distance, second) -> None:
    with pytest.raises(InputError):
        distance(rows(5), second)


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
