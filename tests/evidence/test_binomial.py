"""The verifier's bounds, without SciPy, against SciPy's."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence.binomial import one_sided_95
from gates.intervals import clopper_pearson


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_two_derivations_agree(case: tuple[int, int]) -> None:
    assert one_sided_95(*case) == pytest.approx(clopper_pearson(*case), rel=0, abs=1e-10)


@pytest.mark.parametrize("hits", [0, 1, 5_000_000, 9_999_999, 10_000_000])
def test_millions_of_items_do_not_underflow(hits: int) -> None:
    """Catches: a sum over all terms too, which would run for minutes."""
    assert one_sided_95(hits, 10_000_000) == pytest.approx(clopper_pearson(hits, 10_000_000), rel=0, abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_impossible_counts_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match="hits"):
        one_sided_95(hits, n)
