"""The sentences that are read first."""

import dataclasses

import pytest

from contracts.values import GateOutcome, Verdict
from report.words import claim, headline, limits, listing, not_proved, production, shown


def gate(metric, observed, maximum, result, *, kind="utility", note="", name=""):
    return GateOutcome(name or metric, kind, metric, observed, None, maximum, result, note)


def test_a_failure_is_told_by_the_gate_furthest_beyond_its_limit():
    gates = (
        gate("retain.ta5.drop.upper95", 0.08, 0.05, "failed"),
        gate("retain.ta1.drop.upper95", 0.231, 0.05, "failed"),
        gate("neighbours.ta1.drop.upper95", 0.1, 0.15, "passed"),
    )

    assert headline(Verdict("failed", gates, "s", ""), {}) == (
        "Failed: retained accuracy (TA@1) dropped by up to 23.1 points (limit 5.0 points); "
        "1 more gate likewise."
    )


def test_a_pass_is_told_by_the_gates_nearest_to_their_limits():
    gates = (
        gate("forget.fa5.after.upper95", 0.01, 0.2, "passed", kind="erasure"),
        gate("forget.fa1.after.upper95", 0.048, 0.1, "passed", kind="erasure"),
        gate("retain.ta1.drop.upper95", 0.031, 0.05, "passed"),
        gate("forget.fa1.after.n", 40, 1000, "passed", kind="evidence"),
    )

    assert headline(Verdict("passed", gates, "s", ""), {}) == (
        "Passed: forget accuracy (FA@1) is at most 4.8\N{NO-BREAK SPACE}% (limit 10.0\N{NO-BREAK SPACE}%) "
        "and retained accuracy (TA@1) dropped by at most 3.1 points (limit 5.0 points)."
    )


@pytest.mark.parametrize(
    ("outcome", "told"),
    [
        (
            gate(
                "forget.fa1.after.upper95", None, 0.1, "insufficient evidence", note="the metric is missing"
            ),
            "forget accuracy (FA@1), after, upper 95 % bound cannot be decided (the metric is missing)",
        ),
        (
            GateOutcome(
                "n",
                "evidence",
                "forget.fa1.after.n",
                12,
                30,
                None,
                "insufficient evidence",
                "too little evidence",
            ),
            "too little evidence (forget accuracy (FA@1), after, items: 12, limit at least 30)",
        ),
    ],
)
def test_insufficient_evidence_says_what_is_missing(outcome, told):
    # A failed gate stands first: what is undecided outranks it.
    gates = (gate("retain.ta1.drop.upper95", 0.2, 0.05, "failed"), outcome)

    assert headline(Verdict("insufficient evidence", gates, "s", ""), {}) == f"Insufficient evidence: {told}."


def test_an_incomplete_suite_is_named_as_the_reason():
    gates = (gate("retain.ta1.drop.upper95", 0.01, 0.05, "passed"),)

    assert "lacks" in headline(Verdict("insufficient evidence", gates, "s", ""), {})


def test_only_a_pass_makes_a_claim(make):
    record = make(13)
    verdicts = {d: dataclasses.replace(record.verdict, decision=d) for d in ("passed", "failed")}

    assert "13 concepts (hot beverage," in claim(record.plan, verdicts["passed"], record.names)
    assert claim(record.plan, verdicts["failed"], record.names).startswith("None.")
    assert "Erasure" in dict(not_proved(verdicts["failed"]))
    assert "Erasure" not in dict(not_proved(verdicts["passed"]))


def test_search_by_text_is_unproved_until_an_erasure_gate_bounds_it(make):
    verdict = make().verdict
    bounded = gate("forget.t2i1.after.upper95", 0.05, 0.1, "passed", kind="erasure")

    assert "Text→image search" in dict(not_proved(verdict))
    assert "Text→image search" not in dict(
        not_proved(dataclasses.replace(verdict, gates=(*verdict.gates, bounded)))
    )


def test_a_run_without_passed_self_checks_does_not_say_its_measurement_can_fail(make):
    record = make()
    without = dataclasses.replace(
        record.verdict, gates=tuple(g for g in record.verdict.gates if g.kind != "self-check")
    )

    assert "A measurement that can fail" in dict(shown(record.verdict, record.edits))
    assert "A measurement that can fail" not in dict(shown(without, record.edits))


def test_the_original_has_to_exceed_the_limit_that_the_candidate_must_keep():
    kept = gate("forget.fa1.after.upper95", 0.02, 0.1, "passed")
    exceeded = gate(
        "forget.fa1.before.upper95", 0.9, 0.1, "passed", name="original_must_fail: x", kind="self-check"
    )

    assert limits(kept) == "at most 10.0\N{NO-BREAK SPACE}%"
    assert limits(exceeded) == "above 10.0\N{NO-BREAK SPACE}%"


def test_listing_and_production(make):
    plan = make().plan

    assert [listing(list("abcde")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert listing(list("abcde")) == "5 concepts (a, b, c, d, …)"
    assert "moved from version 1 to version 2" in production(plan, "2", True)
    assert production(plan, "2", False).startswith("Champion unchanged.")
    assert "Nothing was registered" in production(plan, "", False)
