"""Metric names in words and units, and rows in reading order."""

import math

import pytest

from contracts.values import Drop, Measurements, Rate
from report.metrics import figure, metric_words, parse, percent, points, rows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("forget.fa1.after.upper95", "forget accuracy (FA@1), after, upper 95 % bound"),
        ("retain.ta5.drop.upper95", "retained accuracy (TA@5), drop, upper 95 % bound"),
        (
            "neighbours.worst.ta1.drop.upper95",
            "accuracy of the worst neighbour (TA@1), drop, upper 95 % bound",
        ),
        ("neighbour.c-0000000a.ta1", "accuracy of neighbour teapot (TA@1)"),
        ("control.fa5.after.n", "accuracy of the control concept (FA@5), after, items"),
        ("forget.t2i1.before", "text→image hit@1 of the forgotten concepts, before"),
        ("something.else", "something.else"),
    ],
)
def test_a_metric_is_told_in_words(name, words):
    assert metric_words(name, {"c-0000000a": "teapot"}) == words


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("forget.fa1.after.upper95", 0.0291, "2.9\N{NO-BREAK SPACE}%"),
        ("retain.ta1.drop.upper95", 0.231, "23.1 points"),
        ("retain.ta1.drop.before", 0.631, "63.1\N{NO-BREAK SPACE}%"),  # catches every drop field as points
        ("forget.fa1.after.n", 120, "120"),
        ("forget.fa1.after.upper95", None, "not measured"),
        ("retain.ta1.drop.upper95", math.nan, "not measured"),
        ("something.else", 0.12345, "0.123"),
    ],
)
def test_a_value_has_the_unit_of_its_metric(name, value, told):
    assert figure(name, value) == told


def test_points_have_a_true_minus_and_no_negative_zero():
    assert points(-0.0171) == "−1.7"
    assert points(-0.0001) == "0.0"
    assert percent(math.inf) == "not measured"


def test_parse_takes_a_neighbours_id_apart():
    metric = parse("neighbour.s-0000000f.ta1.drop.lower95")

    assert metric is not None
    assert (metric.subject, metric.concept, metric.k) == ("neighbour", "s-0000000f", 1)
    assert (metric.is_drop, metric.field) == (True, "lower95")


def test_rows_join_rates_with_drops_and_put_the_worst_neighbour_first():
    rate = Rate(5, 10, 5, 0.5, 0.2, 0.8)

    def drop(estimate: float) -> Drop:
        return Drop(10, 5, 0.5, 0.5 - estimate, estimate, 0.0, 1.0)

    figures = Measurements(
        rates={"retain.ta1.before": rate, "forget.t2i1.after": rate, "forget.fa5.after": rate},
        drops={
            "retain.ta1": drop(0.1),
            "neighbour.c-00000001.ta1": drop(0.1),
            "neighbour.c-00000002.ta1": drop(0.4),
            "neighbours.worst.ta1": drop(0.4),
        },
    )

    found = list(rows(figures))

    assert [(r.metric.subject, r.metric.score) for r in found[:3]] == [
        ("forget", "FA@5"),
        ("forget", "text→image hit@1"),
        ("retain", "TA@1"),
    ]
    assert (found[2].before, found[2].after, found[2].drop) == (rate, None, drop(0.1))
    assert [r.metric.concept for r in found[3:]] == ["c-00000002", "c-00000001"]
    assert [r.wanted for r in found] == ["low", "low", "high", "high", "high"]
