"""Bounds against published figures, against each other, and by simulated coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from contracts.errors import EvidenceError
from gates.intervals import clopper_pearson, paired_drop, rate


@pytest.mark.parametrize(("n", "percent"), [(20, 13.9), (50, 5.8), (100, 3.0), (299, 1.0), (1000, 0.3)])
def test_no_hits_show_only_what_the_literature_says(n: int, percent: float) -> None:
    lower, upper = clopper_pearson(0, n)
    assert lower == 0
    assert round(100 * upper, 1) == percent


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bounds_leave_exactly_five_percent_in_each_tail(case: tuple[int, int]) -> None:
    hits, n = case
    lower, upper = clopper_pearson(hits, n)
    assert 0 <= lower <= hits / n <= upper <= 1
    if hits < n:
        assert binom.cdf(hits, n, upper) == pytest.approx(0.05, rel=1e-6)
    if hits > 0:
        assert binom.sf(hits - 1, n, lower) == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(EvidenceError):
        clopper_pearson(hits, n)


def test_rate_counts_items_and_drawings() -> None:
    measured = rate(np.array([True, False, False, True]), np.array(["a", "a", "b", "b"]))
    assert (measured.hits, measured.n, measured.clusters, measured.estimate) == (2, 4, 2, 0.5)


def _drop(before: list[int], after: list[int], clusters: list[int], seed: int = 0):
    return paired_drop(
        np.array(before, dtype=bool), np.array(after, dtype=bool), np.array(clusters, dtype=str), seed=seed
    )


@pytest.mark.parametrize("clusters", [1, 2, 20, 200])
def test_no_change_is_bounded_like_no_hits_in_that_many_drawings(clusters: int) -> None:
    """Catches: the plain bootstrap, whose bound would be 0 in all four cases."""
    members = [c for c in range(clusters) for _ in range(3)]
    drop = _drop([1] * len(members), [1] * len(members), members)
    exact = 1 - 0.05 ** (1 / clusters)
    assert drop.estimate == 0
    assert drop.upper95 == pytest.approx(exact, rel=0.04)
    assert drop.lower95 == pytest.approx(-exact, rel=0.04)


@pytest.mark.parametrize("lost", [1, 3, 10])
def test_whole_drawings_lost_are_bounded_like_a_binomial_rate(lost: int) -> None:
    after = [0] * lost + [1] * (40 - lost)
    drop = _drop([1] * 40, after, list(range(40)))
    assert drop.estimate == pytest.approx(lost / 40)
    assert drop.upper95 == pytest.approx(clopper_pearson(lost, 40)[1], rel=0.04)


def test_views_of_one_drawing_do_not_add_certainty() -> None:
    """Catches: resampling items in place of drawings."""
    after = [0, 0, 0, 0, 0] + [1] * 45
    spread = _drop([1] * 50, after, list(range(50)))
    bundled = _drop([1] * 50, after, [i // 5 for i in range(50)])
    assert (spread.clusters, bundled.clusters) == (50, 10)
    assert bundled.upper95 > spread.upper95 + 0.1


def test_gain_is_a_negative_drop_with_mirrored_bounds() -> None:
    before, after, clusters = [1, 0, 1, 1, 0, 1], [1, 1, 0, 1, 1, 1], list(range(6))
    drop, gain = _drop(before, after, clusters), _drop(after, before, clusters)
    assert gain.estimate == pytest.approx(-drop.estimate)
    assert (gain.lower95, gain.upper95) == pytest.approx((-drop.upper95, -drop.lower95), abs=0.02)


def test_same_seed_same_bounds_other_seed_other_draws() -> None:
    case = ([1] * 30, [0, 0] + [1] * 28, [i // 2 for i in range(30)])
    assert _drop(*case, seed=1) == _drop(*case, seed=1)
    assert _drop(*case, seed=1).upper95 != _drop(*case, seed=2).upper95


def test_empty_or_ragged_outcomes_are_refused() -> None:
    with pytest.raises(EvidenceError):
        _drop([], [], [])
    with pytest.raises(EvidenceError):
        _drop([1, 1], [1], [0, 1])


@pytest.mark.parametrize(
    ("clusters", "p_lost", "p_gained", "sizes"),
    [
        (20, 0.05, 0.0, (3, 3)),  # rare losses, few drawings: the plain bootstrap often sees none
        (20, 0.05, 0.05, (1, 1)),
        (60, 0.03, 0.02, (1, 6)),  # drawings of unequal size
        (100, 0.30, 0.10, (2, 2)),
    ],
)
def test_bounds_cover_the_true_drop_in_95_of_100_worlds(
    clusters: int, p_lost: float, p_gained: float, sizes: tuple[int, int]
) -> None:
    """Simulated coverage; a whole drawing changes at once, the hardest case for its cluster bound."""
    rng, truth, worlds = np.random.default_rng(7), p_lost - p_gained, 400
    above, below = 0, 0
    for world in range(worlds):
        members = np.repeat(np.arange(clusters), rng.integers(sizes[0], sizes[1] + 1, clusters))
        fate = rng.choice([1, 0, -1], clusters, p=[p_lost, 1 - p_lost - p_gained, p_gained])[members]
        # A lost drawing was recognised before and not after, a gained one the other way round.
        drop = paired_drop(fate >= 0, fate <= 0, members.astype(str), seed=world, resamples=1000)
        above += drop.upper95 >= truth
        below += drop.lower95 <= truth
    # 95 % less three standard errors of 400 worlds.
    assert above / worlds >= 0.95 - 3 * (0.95 * 0.05 / worlds) ** 0.5
    assert below / worlds >= 0.95 - 3 * (0.95 * 0.05 / worlds) ** 0.5


def test_the_plain_percentile_bootstrap_would_not_cover() -> None:
    """Negative control of the coverage test: the same world, the textbook method, far below 95 %."""
    rng, covered, worlds = np.random.default_rng(7), 0, 300
    for _ in range(worlds):
        loss = rng.random(20) < 0.05
        means = loss[rng.integers(0, 20, (1000, 20))].mean(axis=1)
        covered += np.quantile(means, 0.95) >= 0.05
    assert covered / worlds < 0.75
