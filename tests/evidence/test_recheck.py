"""Two rooms, one verdict: whatever the gates decide, the verifier derives again from the counts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import EvidenceError
from contracts.values import GateOutcome, Level, Measurements, Plan, Rederivation, SetRef, Verdict
from evidence import certificate, recheck, recheck_plan
from evidence.verify import verify
from gates.runner import run_suite
from gates.suite import DEFAULT_SUITE, load_suite

Run = Callable[..., tuple[Measurements, Verdict]]


@pytest.mark.parametrize(
    ("groups", "decision"),
    [
        ({}, "passed"),
        ({"forget": [(1, 1)] * 60}, "failed"),
        ({"retain": [(1, 30)] * 700}, "failed"),
        ({"neighbour": [(1, 30)] * 200}, "failed"),
        ({"forget": [(50, 50)] * 60}, "insufficient evidence"),  # the original never knew it
        ({"control": [(1, 1)] * 60}, "insufficient evidence"),
        ({"control": []}, "insufficient evidence"),
        ({"neighbour": []}, "insufficient evidence"),
        ({"forget": [(1, 40)] * 10}, "insufficient evidence"),
        ({"retain": [(1, 1)] * 100}, "insufficient evidence"),
    ],
    ids=lambda case: case if isinstance(case, str) else str({k: (v[:1], len(v)) for k, v in case.items()}),
)
def test_verifier_agrees_with_the_gates(
    run: Run,
    parts: dict[str, Any],
    model_folder: Path,
    tmp_path: Path,
    groups: dict[str, list[tuple[int, int]]],
    decision: str,
) -> None:
    parts["measurements"], parts["verdict"] = run(**groups)
    certificate.write(certificate.build(**parts), tmp_path / "certificate.json")
    report = verify(tmp_path / "certificate.json", model_folder=model_folder)
    assert report.ok
    assert report.decision == decision


def _edited(measurements: Measurements, kind: str, name: str, **fields: object) -> Measurements:
    table = dict(getattr(measurements, kind))
    table[name] = dataclasses.replace(table[name], **fields)
    return dataclasses.replace(measurements, **{kind: table})


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("forget.fa1.after", {"hits": 61}, "61 hits, 60 items, 12 drawings cannot be"),
        ("forget.fa1.after", {"n": 0}, "cannot be"),
        ("forget.fa1.after", {"clusters": 61}, "cannot be"),
        ("forget.fa1.after", {"n": 10**12}, "cannot be"),
        ("forget.fa1.after", {"hits": 1}, "estimate 0.0 is not 1 of 60"),
        ("forget.fa1.after", {"clusters": 13}, "are not on the same items"),
        ("retain.ta5.after", {"hits": 3}, "retain.ta1.after has more hits than retain.ta5.after"),
    ],
)
def test_impossible_rate_is_named(
    passing: tuple[Measurements, Verdict], name: str, fields: dict[str, object], problem: str
) -> None:
    problems = recheck.recheck_rates(_edited(passing[0], "rates", name, **fields))
    assert problem in "; ".join(problems)


def test_rate_without_its_partner_is_named(passing: tuple[Measurements, Verdict]) -> None:
    rates = {k: v for k, v in passing[0].rates.items() if k != "forget.fa1.before"}
    problems = recheck.recheck_rates(Measurements(rates, passing[0].drops))
    assert problems == ["forget.fa1.after: forget.fa1.before is missing"]


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("retain.ta1", {"estimate": 0.0}, "is not before minus after"),
        ("retain.ta1", {"upper95": -0.5}, "bounds do not enclose the drop"),
        ("retain.ta1", {"lower95": -1.5}, "bounds do not enclose the drop"),
        ("retain.ta1", {"n": 701}, "drop and rate retain.ta1.before differ"),
        ("neighbours.worst.ta1", {"upper95": 0.5}, "other bounds than its neighbours give"),
        ("neighbours.worst.ta1", {"estimate": 0.0, "after": 1.0}, "not the neighbour that lost most"),
        ("neighbour.c-0000000a.ta1", {"upper95": 0.9}, "other bounds than its neighbours give"),
    ],
)
def test_impossible_drop_is_named(
    passing: tuple[Measurements, Verdict], name: str, fields: dict[str, object], problem: str
) -> None:
    problems = recheck.recheck_drops(_edited(passing[0], "drops", name, **fields))
    assert problem in "; ".join(problems)


def test_hiding_a_neighbour_is_named(passing: tuple[Measurements, Verdict]) -> None:
    drops = {k: v for k, v in passing[0].drops.items() if k != "neighbour.c-0000000a.ta1"}
    problems = recheck.recheck_drops(Measurements(passing[0].rates, drops))
    assert "the neighbours' items do not add up to the pooled ones" in problems


def _first_gate(verdict: Verdict, **fields: object) -> Verdict:
    first, *rest = verdict.gates
    changed: GateOutcome = dataclasses.replace(first, **fields)  # type: ignore[arg-type]
    return dataclasses.replace(verdict, gates=(changed, *rest))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"observed": 0.01}, "observed 0.01, the measurements say 0.0487"),
        ({"observed": None}, "observed None"),
        ({"metric": "forget.fa5.after.upper95"}, "on another metric than its name says"),
        ({"maximum": 0.5}, "has another bound than its name says"),
        ({"maximum": None}, "has another bound than its name says"),
        ({"minimum": 0.1}, "has another bound than its name says"),
        ({"result": "failed"}, "result 'failed' should be 'passed'"),
        ({"result": "insufficient evidence"}, "insufficient evidence without a reason"),
    ],
)
def test_gate_that_is_not_decided_as_its_figure_says_is_named(
    passing: tuple[Measurements, Verdict], fields: dict[str, object], problem: str
) -> None:
    measurements, verdict = passing
    assert problem in "; ".join(recheck.recheck_gates(measurements, _first_gate(verdict, **fields)))


@pytest.mark.parametrize("decision", ["failed", "insufficient evidence"])
def test_decision_that_the_gates_do_not_make_is_named(
    passing: tuple[Measurements, Verdict], decision: Any
) -> None:
    problems = recheck.recheck_decision(dataclasses.replace(passing[1], decision=decision))
    assert problems == [f"the gates make the decision 'passed', not {decision!r}"]


def test_gate_listed_twice_is_named(passing: tuple[Measurements, Verdict]) -> None:
    verdict = dataclasses.replace(passing[1], gates=(*passing[1].gates, passing[1].gates[0]))
    assert recheck.recheck_decision(verdict) == ["a gate is listed twice"]


LEVELS = {
    "retain.psnr": Level(8, 4, 30.0, 29.5, 0.5, 0.2, 0.8),
    "neighbours.psnr": Level(8, 4, 30.0, 29.5, 0.5, 0.2, 0.8),
    "neighbour.c-0000000a.psnr": Level(4, 4, 30.0, 29.0, 1.0, 0.3, 1.7),
    "neighbour.c-0000000b.psnr": Level(4, 4, 30.0, 30.0, 0.0, -2.0, 2.0),
    "neighbours.worst.psnr": Level(4, 4, 30.0, 29.0, 1.0, 0.2, 2.0),
}


def test_levels_that_follow_from_each_other_have_no_problem():
    assert recheck.recheck_levels(Measurements({}, {}, LEVELS)) == []


@pytest.mark.parametrize(
    ("name", "fields", "problem"),
    [
        ("retain.psnr", {"loss": 0.1}, "is not before minus after"),
        ("retain.psnr", {"upper95": 0.4}, "bounds do not enclose the loss"),
        ("retain.psnr", {"clusters": 1}, "8 items of 1 clusters cannot be"),
        ("retain.psnr", {"clusters": 9}, "8 items of 9 clusters cannot be"),
        (
            "neighbours.worst.psnr",
            {"loss": 0.0, "after": 30.0, "lower95": -1.0},
            "not the neighbour that lost most",
        ),
        ("neighbours.worst.psnr", {"upper95": 1.7}, "other bounds than its neighbours give"),
        ("neighbour.c-0000000b.psnr", {"n": 5}, "do not add up"),
    ],
)
def test_a_level_that_contradicts_the_others_is_found(name, fields, problem):
    forged = {**LEVELS, name: dataclasses.replace(LEVELS[name], **fields)}
    assert any(problem in found for found in recheck.recheck_levels(Measurements({}, {}, forged)))


def test_a_worst_neighbour_without_neighbours_is_found():
    alone = {"neighbours.worst.psnr": LEVELS["neighbours.worst.psnr"]}
    assert recheck.recheck_levels(Measurements({}, {}, alone))


PROMISED = {"forget.fa1.after.upper95": 0.1}
EARLIER = {"earlier": ("req-00000000000000aa",), "promised": PROMISED}


def _carried(measurements: Measurements) -> Measurements:
    """As if what was erased before were known as well as what was forgotten now."""
    rates = {f"earlier.fa{k}.after": measurements.rates[f"forget.fa{k}.after"] for k in (1, 5)}
    return dataclasses.replace(measurements, rates={**measurements.rates, **rates})


def test_gates_on_earlier_erasures_are_those_that_were_promised(
    parts: dict[str, Any], passing: tuple[Measurements, Verdict]
) -> None:
    plan, (_, verdict) = parts["plan"], passing
    measurements = _carried(passing[0])
    carrying = dataclasses.replace(plan, **EARLIER)
    held = run_suite(load_suite(DEFAULT_SUITE), measurements, PROMISED).verdict

    assert recheck_plan.recheck_earlier(plan, verdict) == []
    assert recheck_plan.recheck_earlier(carrying, held) == []
    assert recheck.recheck_gates(measurements, held) == []
    assert recheck.recheck_rates(measurements) == []
    assert recheck.recheck_self_checks(held) == []
    assert recheck.recheck_decision(held) == []
    looser = dataclasses.replace(carrying, promised={"forget.fa1.after.upper95": 0.2})
    for planned, decided in ((carrying, verdict), (plan, held), (looser, held)):
        (problem,) = recheck_plan.recheck_earlier(planned, decided)
        assert "gates on what was erased before are missing, surplus or on another bound" in problem


@pytest.mark.parametrize(
    "fields",
    [{"erased_before": ("c-0000eeee",)}, {"earlier": ("req-00000000000000aa",)}, {"promised": PROMISED}],
)
def test_a_plan_cannot_be_silent_about_what_its_base_carries(
    parts: dict[str, Any], fields: dict[str, Any]
) -> None:
    problems = recheck_plan.recheck_earlier(dataclasses.replace(parts["plan"], **fields), parts["verdict"])
    assert "what was erased before, by which requests and under which bounds do not go together" in problems


def test_a_promise_has_the_name_of_a_figure(parts: dict[str, Any]) -> None:
    plan = dataclasses.replace(parts["plan"], **EARLIER | {"promised": {"forget.Ada.upper95": 0.1}})
    with pytest.raises(EvidenceError, match=r"plan\.promised holds an unknown metric"):
        certificate.build(**parts | {"plan": plan})


def test_what_was_erased_before_has_no_state_but_after(passing: tuple[Measurements, Verdict]) -> None:
    rates = {"earlier.fa1.before": passing[0].rates["forget.fa1.before"]}
    problems = recheck.recheck_rates(Measurements(rates, {}))
    assert problems == ["earlier.fa1.before: what was erased before is measured after the edit"]


def _again(plan: Plan, *sets: SetRef) -> Plan:
    return dataclasses.replace(
        plan,
        **EARLIER,
        erased_before=("c-0000eeee",),
        rederived=Rederivation("1", "a" * 64, sets),
    )


def test_an_edit_done_again_needs_the_forget_set_of_every_earlier_request(parts: dict[str, Any]) -> None:
    plan: Plan = parts["plan"]
    forget = dataclasses.replace(plan.set("forget"), items_sha256="e" * 64)

    assert recheck_plan.recheck_sets(_again(plan, forget)) == []
    assert recheck_plan.recheck_sets(_again(plan)) == ["0 sets for 1 earlier requests to do again"]
    for other in (plan.set("holdout"), dataclasses.replace(plan.set("holdout"), role="forget")):
        assert recheck_plan.recheck_sets(_again(plan, other)) == [
            "an earlier request's set is no forget set, or plays another role as well"
        ]


def test_only_an_edit_done_again_may_name_what_was_erased_before(
    parts: dict[str, Any], passing: tuple[Measurements, Verdict]
) -> None:
    plan = _again(parts["plan"], dataclasses.replace(parts["plan"].set("forget"), items_sha256="e" * 64))
    edit = dataclasses.replace(parts["candidate"].edits[0], concepts=(*plan.targets, *plan.erased_before))
    measurements = _carried(passing[0])
    parts |= {
        "candidate": dataclasses.replace(parts["candidate"], edits=(edit,)),
        "measurements": measurements,
        "verdict": run_suite(load_suite(DEFAULT_SUITE), measurements, PROMISED).verdict,
    }

    claim = certificate.build(**parts | {"plan": plan})["predicate"]["claim"]["shown"]
    assert "What 1 earlier request(s) erased stays so, at worst: earlier.fa1.after 0 of 60 items" in claim
    with pytest.raises(EvidenceError, match="1 edited concepts are none that the plan removes"):
        certificate.build(**parts | {"plan": dataclasses.replace(plan, rederived=None)})


def test_an_edit_done_again_that_changed_nothing_is_refused(
    parts: dict[str, Any], passing: tuple[Measurements, Verdict]
) -> None:
    plan = _again(parts["plan"], dataclasses.replace(parts["plan"].set("forget"), items_sha256="e" * 64))
    again = dataclasses.replace(plan.rederived, weights_sha256=parts["candidate"].weights_sha256)
    measurements = _carried(passing[0])
    verdict = run_suite(load_suite(DEFAULT_SUITE), measurements, PROMISED).verdict
    with pytest.raises(EvidenceError, match="are those that the edit began with"):
        certificate.build(
            **parts
            | {
                "plan": dataclasses.replace(plan, rederived=again),
                "measurements": measurements,
                "verdict": verdict,
            }
        )
