"""Doubling and bisecting; extrapolating and regula falsi; from a least step upwards."""

import math
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearning.search import StepSearch, smallest_crossing, smallest_reaching, smallest_step


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


def crossing(
    root: float, *, power: float = 1.0, first: float = 1.0, steps: int = 12, broken: float = math.inf
) -> StepSearch[float]:
    """The margin 1 - (step / root)^power; not finite from `broken` on."""
    return smallest_crossing(
        lambda s: None if s >= broken else 1.0 - (s / root) ** power, lambda m: m, first, steps, at_low=1.0
    )


@given(st.floats(0.01, 100.0), st.floats(0.4, 4.0))
def test_the_crossing_is_found_within_its_precision(root: float, power: float) -> None:
    found = crossing(root, power=power, steps=60)
    assert found.smallest is not None
    assert root < found.smallest <= root * 1.021
    assert found.smallest == min(step for step, margin in found.tried if margin < 0)


@given(st.floats(0.05, 20.0), st.floats(0.5, 3.0), st.integers(1, 8))
def test_the_budget_holds_and_what_is_returned_was_seen_to_reach(
    root: float, power: float, steps: int
) -> None:
    found = crossing(root, power=power, steps=steps)
    assert len(found.tried) <= steps
    reaching = [step for step, margin in found.tried if margin < 0]
    assert found.smallest == (min(reaching) if reaching else None)


def test_a_margin_needs_fewer_observations_than_bisection_for_the_same_precision() -> None:
    for root in (0.3, 1.7, 6.1, 23.0):
        by_margin = crossing(root, power=1.3, steps=40)
        budget = next(n for n in range(1, 40) if (search(root, steps=n).smallest or math.inf) <= root * 1.02)
        assert len(by_margin.tried) < budget


def test_a_crossing_behind_a_broken_model_is_bounded_and_one_beyond_it_is_not_found() -> None:
    found = crossing(5.5, broken=7.0, steps=30)
    assert found.smallest is not None
    assert 5.5 < found.smallest < 5.62
    nowhere = crossing(9.0, broken=7.0, steps=30)
    assert nowhere.smallest is None
    assert nowhere.tried


def test_a_margin_that_grows_with_the_step_is_given_up_within_budget() -> None:
    found = smallest_crossing(lambda s: 1.0 + s, lambda m: m, 1.0, 5, at_low=1.0)
    assert found.smallest is None
    assert [step for step, _ in found.tried] == [1.0, 8.0, 64.0, 512.0, 4096.0]


def test_a_concept_that_is_unknown_before_is_met_by_the_first_step_or_a_smaller_one() -> None:
    found = smallest_crossing(lambda s: -1.0 - s, lambda m: m, 1.0, 6, at_low=-1.0)
    assert found.smallest is not None
    assert found.smallest <= 1.0


@pytest.mark.parametrize(("first", "most"), [(10.0, 16), (0.01, 17)])
def test_a_cliff_between_flat_margins_is_not_crept_up_to(first: float, most: int) -> None:
    # Without bisecting these take 69 and 27 observations, by steps of 2 % of the bracket.
    found = smallest_crossing(lambda s: 1.0 if s < 0.37 else -1e-9, lambda m: m, first, 100, at_low=1.0)
    assert found.smallest is not None
    assert 0.37 <= found.smallest <= 0.37 * 1.021
    assert len(found.tried) <= most


def test_a_margin_that_has_flattened_out_is_left_by_large_steps() -> None:
    # Seen from 0 it falls steeply, seen from the last step it does not: by the first, 24 steps of 1.5 times.
    found = smallest_crossing(lambda s: 1e-9 if s < 100 else -1.0, lambda m: m, 0.01, 100, at_low=1.0)
    assert found.smallest is not None
    below = [step for step, _ in found.tried if step < 50]
    assert below == [0.01, 0.015, 0.12, 0.96, 7.68]


@dataclass(frozen=True)
class At:
    """An observation whose margin is that of a target reached from `threshold` on."""

    step: float
    threshold: float

    @property
    def margin(self) -> float:
        return self.threshold - self.step


def from_least(
    threshold: float, rule: Literal["margin", "bisection"], least: float, broken: float = math.inf
) -> StepSearch[At]:
    return smallest_step(
        lambda s: None if s >= broken else At(s, threshold),
        lambda seen: seen.margin < 0,
        rule=rule,
        first=0.5,
        steps=10,
        at_zero=threshold,
        least=least,
    )


@pytest.mark.parametrize("rule", ["margin", "bisection"])
def test_the_least_step_is_tried_first_and_taken_if_it_will_do(rule: Literal["margin", "bisection"]) -> None:
    found = from_least(0.3, rule, least=1.0)
    assert [step for step, _ in found.tried] == [1.0]
    assert found.smallest == 1.0


@pytest.mark.parametrize("rule", ["margin", "bisection"])
def test_beyond_the_least_step_the_search_goes_upwards(rule: Literal["margin", "bisection"]) -> None:
    found = from_least(3.3, rule, least=1.0)
    assert [step for step, _ in found.tried][:2] == [1.0, 2.0]
    assert len(found.tried) <= 10
    assert all(step == seen.step >= 1.0 for step, seen in found.tried)
    assert found.smallest is not None
    assert 3.3 < found.smallest <= 3.3 * 1.021
    assert found.smallest == min(step for step, seen in found.tried if seen.margin < 0)


def test_beyond_the_least_step_margins_are_extrapolated_from_there() -> None:
    # The margin at the least step counts, not the one without a step: on a line, the third look is past it.
    assert from_least(3.3, "margin", least=1.0).tried[2][0] == pytest.approx(2.0 + 1.1 * 1.3)


def test_beyond_the_least_step_it_is_the_lower_end_of_the_bracket() -> None:
    found = from_least(1.3, "bisection", least=1.0)
    assert [step for step, _ in found.tried][:4] == [1.0, 2.0, 1.5, 1.25]
    assert min(step for step, _ in from_least(1.3, "margin", least=1.0).tried[1:]) > 1.0


def test_without_a_least_step_the_first_one_is_as_told_and_the_rule_decides_what_comes_next() -> None:
    by_margin, by_bisection = (from_least(3.3, rule, least=0.0) for rule in ("margin", "bisection"))
    assert by_margin.tried[0][0] == by_bisection.tried[0][0] == 0.5
    assert [step for step, _ in by_bisection.tried][:4] == [0.5, 1.0, 2.0, 4.0]
    assert len(by_margin.tried) < len(by_bisection.tried) == 10


def test_a_least_step_that_breaks_the_model_leaves_nothing_to_try() -> None:
    assert from_least(0.3, "margin", least=1.0, broken=1.0) == StepSearch((), None)
