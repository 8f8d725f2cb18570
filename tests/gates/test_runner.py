"""Great Expectations decides; everything it would let slip is insufficient evidence."""

import dataclasses
import io
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pandas as pd
import pytest

from contracts.values import GateOutcome, Measurements, Rate
from gates import runner
from gates.intervals import clopper_pearson
from gates.metrics import measure
from gates.runner import run_suite
from gates.suite import DEFAULT_SUITE, GateSuite, load_suite


@pytest.fixture(scope="module")
def suite() -> GateSuite:
    return load_suite(DEFAULT_SUITE)


def _with_rates(measurements: Measurements, **rates: Rate | None) -> Measurements:
    merged = {**measurements.rates, **{name.replace("__", "."): rate for name, rate in rates.items()}}
    return Measurements({k: v for k, v in merged.items() if v is not None}, measurements.drops)


def _rate(hits: int, n: int, clusters: int = 10) -> Rate:
    return Rate(hits, n, clusters, hits / n, *clopper_pearson(hits, n))


def _not_passed(gates: tuple[GateOutcome, ...]) -> Mapping[str, str]:
    return {gate.gate: gate.result for gate in gates if gate.result != "passed"}


def test_good_erasure_passes_with_both_self_checks(suite: GateSuite, measurements: Measurements) -> None:
    verdict = run_suite(suite, measurements).verdict
    assert verdict.decision == "passed"
    assert _not_passed(verdict.gates) == {}
    assert (verdict.suite, verdict.suite_sha256) == (suite.name, suite.sha256)
    checks = [g for g in verdict.gates if g.kind == "self-check"]
    assert [(g.gate.partition(":")[0], g.metric) for g in checks] == [
        ("original_must_fail", "forget.fa1.before.upper95"),
        ("original_must_fail", "forget.fa5.before.upper95"),
        ("control_must_pass", "control.fa1.after.upper95"),
        ("control_must_pass", "control.fa5.after.upper95"),
    ]
    assert all(g.observed is not None for g in verdict.gates)


def test_concept_still_recognised_fails_the_erasure_gate(
    suite: GateSuite, measurements: Measurements
) -> None:
    kept = _with_rates(measurements, forget__fa1__after=_rate(10, 60))
    verdict = run_suite(suite, kept).verdict
    assert verdict.decision == "failed"
    assert _not_passed(verdict.gates) == {"forget.fa1.after.upper95 <= 0.1": "failed"}


def test_harmed_neighbours_fail_the_utility_gate(suite: GateSuite, outcomes: pd.DataFrame) -> None:
    """Catches: a gate on the mean over all concepts only."""
    harmed = outcomes.group.eq("neighbour") & outcomes.state.eq("after") & (outcomes.index % 4 == 1)
    verdict = run_suite(
        suite, measure(outcomes.assign(rank=outcomes["rank"].mask(harmed, 30)), seed=0)
    ).verdict
    assert verdict.decision == "failed"
    assert "neighbours.ta1.drop.upper95 <= 0.15" in _not_passed(verdict.gates)


def test_original_that_passes_the_erasure_gate_makes_it_worthless(
    suite: GateSuite, measurements: Measurements
) -> None:
    unknown = _with_rates(measurements, forget__fa1__before=_rate(0, 60))
    verdict = run_suite(suite, unknown).verdict
    assert verdict.decision == "insufficient evidence"
    assert _not_passed(verdict.gates) == {
        "forget.fa1.before.lower95 >= 0.1": "insufficient evidence",
        "original_must_fail: forget.fa1.after.upper95 <= 0.1": "insufficient evidence",
    }


def test_original_that_fails_by_uncertainty_alone_is_no_evidence(
    suite: GateSuite, measurements: Measurements
) -> None:
    """3 hits of 40 miss the erasure gate (upper bound 18 %), yet show no model that knew the concept."""
    vague = _with_rates(measurements, forget__fa1__before=_rate(3, 40))
    verdict = run_suite(suite, vague).verdict
    assert verdict.decision == "insufficient evidence"
    assert list(_not_passed(verdict.gates)) == ["forget.fa1.before.lower95 >= 0.1"]


def test_control_that_fails_the_erasure_gate_is_no_evidence(
    suite: GateSuite, measurements: Measurements
) -> None:
    known = _with_rates(measurements, control__fa5__after=_rate(30, 60))
    verdict = run_suite(suite, known).verdict
    assert verdict.decision == "insufficient evidence"
    assert list(_not_passed(verdict.gates)) == ["control_must_pass: forget.fa5.after.upper95 <= 0.2"]


@pytest.mark.parametrize(
    ("metric", "rate", "gate"),
    [
        ("forget__fa1__after", _rate(0, 29), "forget.fa1.after.n >= 30"),
        ("forget__fa1__after", _rate(0, 60, clusters=1), "forget.fa1.after.clusters >= 2"),
        ("retain__ta1__after", _rate(150, 199), "retain.ta1.after.n >= 200"),
        ("control__fa1__after", _rate(0, 29), "control.fa1.after.n >= 30"),
    ],
)
def test_too_few_items_are_no_evidence(
    suite: GateSuite, measurements: Measurements, metric: str, rate: Rate, gate: str
) -> None:
    verdict = run_suite(suite, _with_rates(measurements, **{metric: rate})).verdict
    assert verdict.decision == "insufficient evidence"
    assert _not_passed(verdict.gates) == {gate: "insufficient evidence"}


def test_insufficient_evidence_outranks_a_failed_gate(suite: GateSuite, measurements: Measurements) -> None:
    both = _with_rates(measurements, forget__fa1__after=_rate(25, 25))
    verdict = run_suite(suite, both).verdict
    assert verdict.decision == "insufficient evidence"
    assert "failed" in _not_passed(verdict.gates).values()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.01", True])
def test_figure_that_is_not_a_finite_number_never_passes(
    suite: GateSuite, measurements: Measurements, value: Any
) -> None:
    """Catches: handing NaN to Great Expectations, whose value expectations pass on it."""
    rate = dataclasses.replace(measurements.rates["forget.fa1.after"], upper95=value)
    verdict = run_suite(suite, _with_rates(measurements, forget__fa1__after=rate)).verdict
    assert verdict.decision == "insufficient evidence"
    assert _not_passed(verdict.gates) == {"forget.fa1.after.upper95 <= 0.1": "insufficient evidence"}
    (gate,) = [g for g in verdict.gates if g.result != "passed"]
    assert gate.observed is None
    assert gate.note


@pytest.mark.parametrize("missing", ["forget__fa1__after", "forget__fa5__before", "control__fa5__after"])
def test_missing_metric_never_passes(suite: GateSuite, measurements: Measurements, missing: str) -> None:
    verdict = run_suite(suite, _with_rates(measurements, **{missing: None})).verdict
    assert verdict.decision == "insufficient evidence"
    assert "the metric is missing" in {gate.note for gate in verdict.gates}


def test_no_measurements_at_all_decide_nothing(suite: GateSuite) -> None:
    run = run_suite(suite, Measurements({}, {}))
    assert run.verdict.decision == "insufficient evidence"
    assert {gate.result for gate in run.verdict.gates} == {"insufficient evidence"}
    assert run.validations == {}


@pytest.mark.parametrize(
    "spoil",
    [lambda row: pd.concat([row, row]), lambda row: row.iloc[:0], lambda row: row.mask(row.notna())],
    ids=["two rows", "no row", "nulls"],
)
def test_table_that_is_not_one_full_row_never_passes(
    suite: GateSuite,
    measurements: Measurements,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    one_row = runner._one_row
    monkeypatch.setattr(runner, "_one_row", lambda observed: spoil(one_row(observed)))
    verdict = run_suite(suite, measurements).verdict
    assert verdict.decision == "insufficient evidence"
    assert {gate.result for gate in verdict.gates} == {"insufficient evidence"}


def test_error_inside_great_expectations_is_not_a_failed_gate(
    suite: GateSuite, measurements: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text in the table makes the expectation raise; Great Expectations calls that success=False."""
    one_row = runner._one_row
    monkeypatch.setattr(runner, "_one_row", lambda observed: one_row(observed).map(str))
    verdict = run_suite(suite, measurements).verdict
    assert verdict.decision == "insufficient evidence"
    assert {gate.note for gate in verdict.gates} == {"Great Expectations raised an error"}


def test_run_is_silent(
    suite: GateSuite, measurements: Measurements, caplog: pytest.LogCaptureFixture
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), caplog.at_level(logging.INFO):
        run_suite(suite, measurements)
    assert (out.getvalue(), err.getvalue(), caplog.text) == ("", "", "")


EARLIER = {"earlier__fa1__after": _rate(0, 60), "earlier__fa5__after": _rate(4, 60)}
PROMISED = {"forget.fa1.after.upper95": 0.07}


def test_what_was_erased_before_is_held_to_what_it_promised(
    suite: GateSuite, measurements: Measurements
) -> None:
    """The suite bounds FA@5 as well, and FA@1 at 10 %: neither was promised."""
    verdict = run_suite(suite, _with_rates(measurements, **EARLIER), PROMISED).verdict
    assert verdict.decision == "passed"
    assert [g.gate for g in verdict.gates if g.metric.startswith("earlier.")] == [
        "earlier.fa1.after.upper95 <= 0.07"
    ]


def test_an_earlier_concept_that_came_back_fails_the_verdict(
    suite: GateSuite, measurements: Measurements
) -> None:
    back = _with_rates(measurements, **{**EARLIER, "earlier__fa1__after": _rate(1, 60)})
    verdict = run_suite(suite, back, PROMISED).verdict
    assert verdict.decision == "failed"
    assert _not_passed(verdict.gates) == {"earlier.fa1.after.upper95 <= 0.07": "failed"}


def test_an_earlier_erasure_that_was_not_measured_never_passes(
    suite: GateSuite, measurements: Measurements
) -> None:
    verdict = run_suite(suite, measurements, PROMISED).verdict
    assert verdict.decision == "insufficient evidence"
    assert _not_passed(verdict.gates) == {"earlier.fa1.after.upper95 <= 0.07": "insufficient evidence"}
