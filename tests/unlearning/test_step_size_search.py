"""Doubling and bisecting."""

import math

from hypothesis import given
from hypothesis import strategies as st

from unlearning.search import StepSearch, smallest_reaching


def search(
    threshold: float, *, first: float = 1.0, steps: int = 10, broken: float = math.inf
) -> StepSearch[bool]:
    """Reached from `threshold` on, not finite from `broken` on."""
    return smallest_reaching(lambda s: None if s >= broken else s >= threshold, bool, first, steps)


def test_the_first_trials_double_and_the_next_bisect() -> None:
    found = search(5.0, steps=6)
    assert [step for step, _ in found.tried] == [1.0, 2.0, 4.0, 8.0, 6.0, 5.0]
    assert found.smallest == 5.0


@given(st.floats(1e-3, 200.0), st.integers(1, 20))
def test_the_smallest_reaching_trial_is_returned_within_budget(threshold: float, steps: int) -> None:
    found = search(threshold, steps=steps)
    assert len(found.tried) <= steps
    reaching = [step for step, reached in found.tried if reached]
    assert found.smallest == (min(reaching) if reaching else None)


def test_ten_trials_find_the_threshold_to_a_percent() -> None:
    for threshold in (0.3, 1.0, 3.3):
        found = search(threshold)
        assert found.smallest is not None
        assert threshold <= found.smallest <= threshold * 1.01


def test_a_target_out_of_reach_gives_none() -> None:
    found = search(math.inf, steps=4)
    assert found.smallest is None
    assert [step for step, _ in found.tried] == [1.0, 2.0, 4.0, 8.0]


def test_a_step_that_breaks_the_model_bounds_the_search_but_is_no_success() -> None:
    found = search(5.5, broken=7.0)
    assert found.smallest is not None
    assert 5.5 <= found.smallest < 5.6
    assert max(step for step, _ in found.tried) < 7.0
    nowhere = search(9.0, broken=7.0)
    assert nowhere.smallest is None
    assert nowhere.tried


def test_growth_stops_at_the_largest_float() -> None:
    assert search(math.inf, first=1e300, steps=100).smallest is None
