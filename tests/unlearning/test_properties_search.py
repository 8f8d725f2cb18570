"""Properties of the step searches, on drawn margins against a dense grid: monotone, wavy, broken."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning.search import SLACK, StepSearch, smallest_crossing, smallest_reaching

PROPERTY = settings(deadline=None, derandomize=True, max_examples=300)
PRECISION = 0.02
# The margin is at its last knot's value or falling beyond it, so a grid up to here sees every crossing.
GRID = 200


@dataclass(frozen=True)
class Margin:
    """A continuous margin, linear between knots; beyond the last one it falls by `fall` per unit of step.

    `broken` is the step from which the features are not finite.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    fall: float
    broken: float = math.inf

    def __call__(self, step: float) -> float | None:
        if step >= self.broken:
            return None
        if step >= self.xs[-1]:
            return self.ys[-1] - (step - self.xs[-1]) * self.fall
        i = bisect.bisect_right(self.xs, step) - 1
        share = (step - self.xs[i]) / (self.xs[i + 1] - self.xs[i])
        return self.ys[i] + share * (self.ys[i + 1] - self.ys[i])

    def crossings(self) -> list[float]:
        """Every step at which the margin turns negative, to the spacing of a dense grid and then exactly."""
        end = 1.01 * (self.xs[-1] + max(self.ys[-1], 0.0) / self.fall)
        grid = [end * i / GRID for i in range(GRID + 1)]
        points = sorted({*grid, *self.xs})
        signs = [(step, seen < 0) for step in points if (seen := self(step)) is not None]
        found = []
        for (low, was_negative), (high, is_negative) in itertools.pairwise(signs):
            if is_negative and not was_negative:
                found.append(self._crossing(low, high))
        return found

    def _crossing(self, low: float, high: float) -> float:
        at_low, at_high = self(low), self(high)
        assert at_low is not None
        assert at_high is not None
        return low + (high - low) * at_low / (at_low - at_high)


@st.composite
def margins(draw: st.DrawFn, falling: bool, breaks: bool = False) -> Margin:
    """From a margin of 1 at step 0; flat stretches, sudden drops and very unequal lengths are common."""
    widths = draw(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=7))
    change = st.sampled_from([0.0, 1e-3]) | st.floats(0.01, 30.0)
    changes = draw(st.lists(change, min_size=len(widths), max_size=len(widths)))
    signs = draw(
        st.lists(st.just(-1) if falling else st.sampled_from([-1, 1]), min_size=len(widths), max_size=7)
    )
    unit = draw(st.sampled_from([1e-3, 1.0, 1e3]))
    xs, ys = [0.0], [1.0]
    for width, size, sign in zip(widths, changes, signs, strict=False):
        xs.append(xs[-1] + unit * width)
        ys.append(ys[-1] + sign * size)
    broken = draw(st.floats(0.3, 2.0)) * xs[-1] if breaks else math.inf
    return Margin(xs, ys, fall=draw(st.floats(0.05, 5.0)) / unit, broken=broken)


def by_margin(margin: Margin, first: float, steps: int) -> StepSearch[float]:
    return smallest_crossing(margin, lambda seen: seen, first, steps, at_low=1.0, precision=PRECISION)


def by_bisection(margin: Margin, first: float, steps: int) -> StepSearch[float]:
    return smallest_reaching(margin, lambda seen: seen < 0, first, steps)


SEARCHES: tuple[Callable[[Margin, float, int], StepSearch[float]], ...] = (by_margin, by_bisection)


def most_observations(first: float, root: float) -> int:
    """The bound that `smallest_crossing` names; before the first bracket a step grows by 1.5 to 8 times."""
    to_first = 1 + max(0, math.ceil(math.log(root / first, 1.5)))
    widest = first if first >= root else 7 * root
    return to_first + SLACK + math.ceil(math.log2(widest / (PRECISION * root)))


@PROPERTY
@given(margins(falling=True), st.floats(0.01, 100.0))
def test_on_a_falling_margin_the_one_crossing_is_found(margin: Margin, relative: float) -> None:
    (root,) = margin.crossings()
    found = by_margin(margin, relative * root, 80)
    assert found.smallest is not None
    assert root * (1 - 1e-9) <= found.smallest <= root * (1 + 1.03 * PRECISION)
    # Regula falsi has no bound of its own on corners and cliffs.  Catches one that sticks to an end.
    assert len(found.tried) <= most_observations(relative * root, root)


@PROPERTY
@given(
    st.floats(0.01, 100.0),
    st.floats(-15.0, 2.0),
    st.floats(-15.0, 2.0),
    st.sampled_from(["flat", "steep", "cliff"]),
)
def test_flat_margins_keep_the_bound(relative: float, before: float, after: float, shape: str) -> None:
    # Margins of 1e-15 to 100 on both sides of a jump; regula falsi alone needs up to 70 observations.
    root = 0.37

    def margin(step: float) -> float:
        falling = {"flat": 1.0, "steep": math.exp(-step), "cliff": max(1.0 - 2 * step, 0.0) + 1e-9}[shape]
        return 10**before * falling if step < root else -(10**after)

    found = smallest_crossing(
        margin, lambda m: m, relative * root, 300, at_low=margin(0.0), precision=PRECISION
    )
    assert found.smallest is not None
    assert root <= found.smallest <= root * (1 + 1.03 * PRECISION)
    assert len(found.tried) <= most_observations(relative * root, root)


SMOOTH: dict[str, Callable[[float, float], float]] = {
    "bent down": lambda x, bend: 1.0 - x**bend,
    "bent up": lambda x, bend: math.exp(-bend * x) - math.exp(-bend),
}


@PROPERTY
@given(
    st.sampled_from(sorted(SMOOTH)),
    st.floats(0.5, 3.0),
    st.floats(0.1, 10.0),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_on_a_smooth_margin_few_observations_do(
    shape: str, bend: float, relative: float, root: float
) -> None:
    def margin(step: float) -> float:
        return SMOOTH[shape](step / root, bend)

    found = smallest_crossing(
        margin, lambda m: m, relative * root, 80, at_low=margin(0.0), precision=PRECISION
    )
    assert found.smallest is not None
    assert root * (1 - 1e-9) <= found.smallest <= root * (1 + 1.03 * PRECISION)
    # The paper's bisection takes 10 always.  Catches Illinois' halving lost at either end: up to 47 then.
    assert len(found.tried) <= 14


@PROPERTY
@given(margins(falling=False), st.floats(0.01, 3.0))
def test_on_a_wavy_margin_what_is_found_is_a_crossing(margin: Margin, relative: float) -> None:
    crossings = margin.crossings()
    found = by_margin(margin, relative * margin.xs[-1], 300)
    assert found.smallest is not None
    # Which one is found depends on the steps tried, but it is one: there is a crossing just below.
    assert any(
        root * (1 - 1e-9) <= found.smallest <= root * (1 + 1.1 * PRECISION) + 1e-12 for root in crossings
    )


@PROPERTY
@given(
    margins(falling=False) | margins(falling=False, breaks=True),
    st.floats(0.01, 3.0),
    st.integers(1, 14),
    st.sampled_from(SEARCHES),
)
def test_budget_and_answer_hold_on_any_margin(
    margin: Margin,
    relative: float,
    steps: int,
    search: Callable[[Margin, float, int], StepSearch[float]],
) -> None:
    asked: list[float] = []

    def observed(step: float) -> float | None:
        asked.append(step)
        return margin(step)

    found = search(observed, relative * margin.xs[-1], steps)  # type: ignore[arg-type]
    assert len(asked) <= steps
    assert len(set(asked)) == len(asked), "no step is paid for twice"
    assert all(step > 0 and math.isfinite(step) for step in asked)
    assert [step for step, _ in found.tried] == [step for step in asked if step < margin.broken]
    assert all(seen == margin(step) for step, seen in found.tried)
    reaching = [step for step, seen in found.tried if seen < 0]
    # A step that breaks the model is no success.
    assert found.smallest == (min(reaching) if reaching else None)


@PROPERTY
@given(margins(falling=True, breaks=True), st.floats(0.01, 3.0), st.sampled_from(SEARCHES))
def test_a_broken_model_hides_no_crossing_below_it(
    margin: Margin, relative: float, search: Callable[[Margin, float, int], StepSearch[float]]
) -> None:
    whole = Margin(margin.xs, margin.ys, margin.fall)
    (root,) = whole.crossings()
    found = search(margin, relative * margin.xs[-1], 300)
    if margin.broken > 1.05 * root:
        assert found.smallest is not None
        assert root * (1 - 1e-9) <= found.smallest <= root * (1 + 1.03 * PRECISION)
    elif margin.broken < root:
        assert found.smallest is None


@PROPERTY
@given(margins(falling=True), st.floats(0.1, 10.0))
def test_both_searches_agree_where_there_is_one_crossing(margin: Margin, relative: float) -> None:
    (root,) = margin.crossings()
    one, other = by_margin(margin, relative * root, 80), by_bisection(margin, relative * root, 40)
    assert one.smallest is not None
    assert other.smallest is not None
    assert root * (1 - 1e-9) <= other.smallest <= one.smallest * (1 + 1e-6)
    assert one.smallest <= other.smallest * (1 + 1.03 * PRECISION)


@PROPERTY
@given(margins(falling=False), st.floats(0.01, 3.0), st.integers(-40, 40))
def test_units_of_step_and_margin_do_not_matter(margin: Margin, relative: float, exponent: int) -> None:
    # Powers of two are exact, so are the answers.  Catches an absolute tolerance.
    unit = 2.0**exponent
    first = relative * margin.xs[-1]
    found = by_margin(margin, first, 12)
    scaled = smallest_crossing(
        lambda step: margin(step / unit),
        lambda seen: seen / unit,
        first * unit,
        12,
        at_low=1.0 / unit,
        precision=PRECISION,
    )
    assert [step for step, _ in scaled.tried] == [step * unit for step, _ in found.tried]


def test_a_margin_that_is_not_a_number_is_no_success() -> None:
    for first in (1.0, 1e-3):
        found = smallest_crossing(
            lambda s: math.nan if s > 0.5 else 1.0, lambda m: m, first, 12, at_low=1.0, precision=PRECISION
        )
        assert found.smallest is None
        assert len({step for step, _ in found.tried}) == 12
