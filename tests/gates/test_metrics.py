"""Figures of a table small enough to count by hand."""

import dataclasses

import pandas as pd
import pytest

from contracts.metrics import HITS, LEVELS
from contracts.values import Measurements
from gates.columns import flatten, is_known, known_columns
from gates.metrics import measure


def test_rates_count_ranks_within_depth(measurements: Measurements) -> None:
    hits = {name: (rate.hits, rate.n, rate.clusters) for name, rate in measurements.rates.items()}
    assert hits["forget.fa1.before"] == (50, 60, 6)
    assert hits["forget.fa5.before"] == (60, 60, 6)
    assert hits["forget.fa1.after"] == hits["forget.fa5.after"] == (0, 60, 6)
    assert hits["retain.ta1.before"] == (242, 340, 340)
    assert hits["retain.ta1.after"] == (239, 340, 340)
    assert hits["retain.ta5.after"] == (340, 340, 340)
    assert hits["neighbours.ta1.after"] == (39, 40, 40)
    assert hits["neighbour.c-0000000a.ta1.after"] == (19, 20, 20)
    assert hits["control.fa5.after"] == (0, 60, 60)
    assert hits["forget.t2i1.before"] == (1, 1, 1)
    assert hits["retain.t2i1.before"] == (1, 3, 3)
    assert hits["retain.t2i1.after"] == (2, 3, 3)


def test_drops_are_before_minus_after_on_the_same_items(measurements: Measurements) -> None:
    assert measurements.drops["retain.ta1"].estimate == pytest.approx(3 / 340)
    assert measurements.drops["retain.t2i1"].estimate == pytest.approx(-1 / 3)
    for name, drop in measurements.drops.items():
        if name != "neighbours.worst.ta1":
            assert drop.before == measurements.rates[f"{name}.before"].estimate
            assert drop.after == measurements.rates[f"{name}.after"].estimate
        assert drop.lower95 <= drop.estimate <= drop.upper95
    assert not [name for name in measurements.drops if name.startswith(("forget.", "control."))]


def test_worst_neighbour_is_the_one_that_lost_most_under_the_widest_bound(
    measurements: Measurements,
) -> None:
    drops = measurements.drops
    worst, single, other = (
        drops[f"{name}.ta1"] for name in ("neighbours.worst", "neighbour.c-0000000a", "neighbour.c-0000000b")
    )
    assert worst.estimate == single.estimate > other.estimate
    assert worst.upper95 == max(single.upper95, other.upper95)
    assert worst.lower95 == drops["neighbours.ta1"].lower95


def test_figures_do_not_depend_on_the_order_of_the_rows(outcomes: pd.DataFrame) -> None:
    assert measure(outcomes.sample(frac=1, random_state=3), seed=0) == measure(outcomes, seed=0)


def test_absent_group_yields_no_metric(outcomes: pd.DataFrame) -> None:
    """Catches: a default of zero for what was never measured."""
    figures = flatten(measure(outcomes[outcomes.group.isin(["forget", "retain"])], seed=0))
    assert not [column for column in figures if column.startswith(("control", "neighbour"))]


def test_every_column_of_a_run_is_known_and_the_known_ones_occur(
    outcomes: pd.DataFrame, measurements: Measurements
) -> None:
    figures = flatten(measurements)
    assert all(is_known(column) for column in figures)
    assert figures["retain.ta1.drop.n"] == 340
    assert figures["forget.fa1.after.n"] == 60

    ranked = outcomes[outcomes.question == "i2t"]
    others = [ranked.assign(question=question, item=_renamed) for question in ("t2i", *HITS)]
    everything = pd.concat([outcomes[outcomes.question != "t2i"], *others])
    items = ranked[ranked.state == "before"]
    qualities = pd.concat([items.assign(metric=metric, before=30.0, after=29.0) for metric in LEVELS])
    found = flatten(measure(everything, seed=0, qualities=qualities))
    assert all(is_known(column) for column in found)
    assert set(known_columns()) <= {column.replace("c-0000000a", "<concept id>") for column in found}


def _renamed(table: pd.DataFrame) -> "pd.Series[str]":
    return table["item"] + "q"


@pytest.mark.parametrize(
    "column",
    [
        "forget.fa1",
        "forget.fa1.after",
        "forget.fa3.after.n",
        "neighbour.tea.ta1.drop.upper95",
        "retain.ta1.upper95",
    ],
)
def test_other_columns_are_unknown(column: str) -> None:
    assert not is_known(column)


def test_nothing_in_the_measurements_but_names_and_numbers(measurements: Measurements) -> None:
    for value in (*measurements.rates.values(), *measurements.drops.values()):
        assert all(type(v) in (int, float) for v in dataclasses.astuple(value))
