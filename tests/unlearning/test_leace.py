"""LEACE against its definition, an oracle, and rivals it must not lose to."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contracts.errors import InputError, ModelError
from tests.unlearning.erasing import mapped
from unlearning.leace import LabelledMoments, fit_erasure


def samples(n: int, d: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated features (n, d) with a mean far from zero, and one-hot labels (n, k) of k + 1 classes."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % (k + 1)
    centres = torch.randn(k + 1, d, generator=draw, dtype=torch.float64)
    mix = torch.randn(d, d, generator=draw, dtype=torch.float64)
    x = torch.randn(n, d, generator=draw, dtype=torch.float64) @ mix + centres[classes] + 5.0
    return x, torch.nn.functional.one_hot(classes, k + 1)[:, :k].double()


def moments(x: Tensor, z: Tensor) -> LabelledMoments:
    return LabelledMoments(x.shape[1], z.shape[1]).add(x, z)


def cross_covariance(x: Tensor, z: Tensor) -> Tensor:
    return (x - x.mean(0)).T @ (z - z.mean(0)) / len(x)


def told(x: Tensor, z: Tensor) -> float:
    """Share of the variance of z that the best affine predictor from x explains on these samples."""
    centred, wanted = x - x.mean(0), z - z.mean(0)
    fit = centred @ torch.linalg.lstsq(centred, wanted, driver="gelsd").solution
    return float(fit.square().sum() / wanted.square().sum())


@pytest.mark.parametrize("micro_batch", [1, 7, 200])
def test_moments_do_not_depend_on_the_division_into_batches(micro_batch: int) -> None:
    x, z = samples(200, 6, 3)
    streamed = LabelledMoments(6, 3)
    for rows in torch.split(torch.arange(200), micro_batch):
        streamed.add(x[rows], z[rows])
    streamed.add(x[:0], z[:0])
    assert streamed.n == 200
    torch.testing.assert_close(streamed.mean_x, x.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(streamed.mean_z, z.mean(0), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(streamed.cov_xx, torch.cov(x.T, correction=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.cov_xz, cross_covariance(x, z), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(streamed.cov_zz, torch.cov(z.T, correction=0), rtol=1e-12, atol=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    # Catches E[xx] - E[x]E[x], which would leave nothing of the covariance.
    x, z = samples(300, 4, 1)
    far = LabelledMoments(4, 1)
    for rows in torch.split(torch.arange(300), 11):
        far.add(x[rows] + 1e7, z[rows])
    torch.testing.assert_close(far.cov_xx, moments(x, z).cov_xx, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    d=st.integers(1, 24),
    k=st.sampled_from([1, 2, 5, 13]),
    spare=st.integers(0, 60),
    shrinkage=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    affine=st.booleans(),
    seed=st.integers(0, 5),
)
def test_after_the_erasure_labels_and_features_do_not_covary(
    d: int, k: int, spare: int, shrinkage: float, affine: bool, seed: int
) -> None:
    x, z = samples(2 * (k + 1) + spare, d, k, seed)
    seen = moments(x, z)
    erasure = fit_erasure(seen, shrinkage, affine=affine)
    erased = mapped(erasure, x)
    scale = float(seen.cov_xz.abs().max())
    torch.testing.assert_close(
        cross_covariance(erased, z), torch.zeros(d, k).double(), rtol=0, atol=1e-6 * scale
    )
    assert erasure.left.shape[1] <= min(d, k)
    torch.testing.assert_close(mapped(erasure, erased), erased, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 13])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_no_linear_predictor_is_better_than_a_constant(k: int, shrinkage: float) -> None:
    x, z = samples(600, 20, k)
    before = told(x, z)
    assert before > 0.05
    assert told(mapped(fit_erasure(moments(x, z), shrinkage), x), z) < 1e-12


@pytest.mark.parametrize("k", [1, 3, 13])
def test_it_agrees_with_the_authors_package(k: int) -> None:
    oracle = pytest.importorskip("concept_erasure", reason="concept-erasure, the oracle, is not installed")
    x, z = samples(800, 20, k, seed=3)
    theirs = oracle.LeaceFitter.fit(x, z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9).eraser
    ours = fit_erasure(moments(x, z))
    torch.testing.assert_close(torch.eye(20) - ours.left @ ours.right, theirs.P, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mapped(ours, x), theirs(x), rtol=1e-8, atol=1e-8)
    different = fit_erasure(moments(x, z), 0.5)
    assert not torch.allclose(mapped(different, x), theirs(x), rtol=1e-2, atol=1e-2)


def rivals(seen: LabelledMoments, n: int = 20) -> list[Tensor]:
    """Projections (d, d) that erase as well: I - B (M'B)^-1 M', B = cov(x, z), for any full-rank M."""
    draw = torch.Generator().manual_seed(1)
    d, k = seen.cov_xz.shape
    cross, inverse = seen.cov_xz, torch.linalg.inv(seen.cov_xx)
    others = [cross]  # M = B: the orthogonal projection
    # close to the optimum M = cov(x)^-1 B, and far from it
    for i in range(n):
        noise = torch.randn(d, k, generator=draw, dtype=torch.float64)
        others.append(inverse @ cross * (1.0 if i % 2 else 0.0) + 0.05 * noise)
    return [torch.eye(d).double() - cross @ torch.linalg.inv(m.T @ cross) @ m.T for m in others]


@pytest.mark.parametrize("k", [1, 4])
def test_no_other_map_that_erases_moves_the_features_less(k: int) -> None:
    x, z = samples(500, 10, k)
    seen = moments(x, z)
    centre = x.mean(0)
    moved = float((mapped(fit_erasure(seen), x) - x).square().sum(1).mean())
    linear = float((mapped(fit_erasure(seen, affine=False), x) - x).square().sum(1).mean())
    for projection in rivals(seen):
        erased = (x - centre) @ projection.T + centre
        torch.testing.assert_close(
            cross_covariance(erased, z), torch.zeros(10, k).double(), rtol=0, atol=1e-8
        )
        assert moved < float((erased - x).square().sum(1).mean())
        assert linear < float((x @ projection.T - x).square().sum(1).mean())
    # Without a constant the best linear map differs from LEACE's matrix, and costs more than LEACE.
    bare = fit_erasure(seen)
    assert moved < linear < float((x @ bare.right.T @ bare.left.T).square().sum(1).mean())


def test_full_shrinkage_is_the_orthogonal_projection() -> None:
    x, z = samples(300, 8, 2)
    erasure = fit_erasure(moments(x, z), 1.0)
    basis, _ = torch.linalg.qr(cross_covariance(x, z))
    torch.testing.assert_close(erasure.left @ erasure.right, basis @ basis.T, rtol=1e-8, atol=1e-8)


def test_labels_that_follow_from_others_add_no_rank() -> None:
    x, z = samples(300, 8, 3)
    every_class = torch.cat([z, 1.0 - z.sum(1, keepdim=True)], dim=1)
    three, four = fit_erasure(moments(x, z)), fit_erasure(moments(x, every_class))
    assert four.left.shape[1] == three.left.shape[1] == 3
    torch.testing.assert_close(mapped(four, x), mapped(three, x), rtol=1e-8, atol=1e-8)
    assert float(three.correlations.max()) <= 1.0 + 1e-9


@pytest.mark.parametrize("k", [1, 4])
def test_correlations_say_how_well_the_labels_can_be_predicted(k: int) -> None:
    # For labels of several columns R^2 depends on their units; whitened labels have none.
    x, z = samples(300, 8, k)
    centred = z - z.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(z))
    white = centred @ (vectors / values.sqrt()) @ vectors.T
    squares = fit_erasure(moments(x, z)).correlations.square()
    assert float(squares.mean()) == pytest.approx(told(x, white), rel=1e-9)


def test_duplicated_samples_change_nothing() -> None:
    x, z = samples(90, 7, 2)
    twice = LabelledMoments(7, 2).add(x, z).add(x, z)
    torch.testing.assert_close(
        mapped(fit_erasure(twice), x), mapped(fit_erasure(moments(x, z)), x), rtol=1e-8, atol=1e-8
    )


def test_what_the_samples_never_vary_in_is_left_alone() -> None:
    # Features that repeat others: the covariance has no inverse.
    x, z = samples(200, 5, 2)
    repeated = torch.cat([x, 2.0 * x[:, :2]], dim=1)
    erasure = fit_erasure(moments(repeated, z))
    assert told(mapped(erasure, repeated), z) < 1e-9
    never_seen = torch.zeros(7, dtype=torch.float64)
    never_seen[0], never_seen[5] = 2.0, -1.0  # orthogonal to every sample
    outside = repeated[:1] + 3.0 * never_seen
    torch.testing.assert_close(
        mapped(erasure, outside) - mapped(erasure, repeated[:1]), 3.0 * never_seen[None], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("shrinkage", [0.0, 0.2])
def test_fewer_samples_than_features(shrinkage: float) -> None:
    x, z = samples(12, 40, 2)
    erasure = fit_erasure(moments(x, z), shrinkage)
    erased = mapped(erasure, x)
    assert bool(torch.isfinite(erased).all())
    torch.testing.assert_close(cross_covariance(erased, z), torch.zeros(40, 2).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("affine", [True, False])
def test_features_that_tell_nothing_are_left_alone(affine: bool) -> None:
    _, z = samples(40, 3, 1)
    x = torch.full((40, 3), 0.1, dtype=torch.float64)
    erasure = fit_erasure(moments(x, z), affine=affine)
    assert erasure.left.shape == (3, 0)
    assert torch.equal(mapped(erasure, x), x)
    change, constant = erasure.folded(torch.ones(2, 3))
    assert not change.any()
    assert not constant.any()


def test_folding_is_erasing_first() -> None:
    x, z = samples(100, 6, 2)
    weight, bias = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    for affine in (True, False):
        erasure = fit_erasure(moments(x, z), 0.1, affine=affine)
        change, constant = erasure.folded(weight)
        torch.testing.assert_close(
            x @ (weight + change).T + bias + constant,
            mapped(erasure, x) @ weight.T + bias,
            rtol=1e-9,
            atol=1e-9,
        )
        assert bool(constant.any()) is affine


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_one_label_for_all_is_refused(value: float) -> None:
    x, _ = samples(20, 3, 1)
    with pytest.raises(InputError, match="20 samples have the same label"):
        fit_erasure(moments(x, torch.full((20, 1), value)))


def test_too_few_samples_and_bad_numbers_are_refused() -> None:
    x, z = samples(20, 3, 1)
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        fit_erasure(moments(x[:1], z[:1]))
    for shrinkage in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="shrinkage must lie in"):
            fit_erasure(moments(x, z), shrinkage)
    for bad in (float("nan"), float("inf")):
        broken = x.clone()
        broken[3, 1] = bad
        with pytest.raises(ModelError, match="not finite"):
            fit_erasure(moments(broken, z))
