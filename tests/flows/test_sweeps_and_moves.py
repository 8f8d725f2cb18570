"""Flows over several requests, and the champion moved by hand."""

from pathlib import Path

import pytest

from contracts.errors import InputError, PromotionConflict
from data.layout import concept_id
from evidence.schema import read_statement
from evidence.strict_json import parse
from flows.aliases import promote, rollback
from flows.sweep import sweep
from intake.workspace import Workspace
from tasks.families import load
from tasks.recheck import worst_of
from tasks.requests import take_in
from tasks.stores import open_ledger, open_registry
from tests.world import FORGET, FORGET_OVERLAP, FORGET_TWO, MODEL, SEEN, TARGET, Done


def test_a_sweep_runs_what_waits_and_rechecks_what_passed(done_workspace: Workspace, done: Done) -> None:
    ledger = open_ledger(done_workspace)
    bad = take_in(done_workspace, MODEL, "object", FORGET_OVERLAP)
    good = take_in(done_workspace, MODEL, "object", FORGET_TWO)
    cancelled = take_in(done_workspace, MODEL, "object", FORGET_TWO)
    ledger.cancel(cancelled.id)

    found = sweep(MODEL)

    # A request that cannot be served (its target is gone already) does not stop the next one.
    assert found["errors"] == {bad.id: "InputError"}
    assert ledger.get(bad.id).state == "error"
    (run,) = found["runs"]
    assert (run["request"], run["concepts"], run["base_version"], run["version"]) == (good.id, 2, "2", "3")
    statement = read_statement(parse(Path(run["certificate"]).read_bytes()))
    plan = statement.plan
    assert (plan.erased_before, plan.earlier) == ((concept_id(TARGET),), (done.request_id,))
    (carried,) = (gate for gate in statement.verdict.gates if gate.metric.startswith("earlier."))
    assert carried.observed == statement.measurements.rates["earlier.fa1.after"].upper95
    assert set(plan.targets) == {concept_id(SEEN[3]), concept_id(SEEN[6])}
    assert plan.rederived is not None
    assert (plan.rederived.version, [ref.path for ref in plan.rederived.sets]) == ("1", [FORGET])
    assert concept_id(TARGET) not in plan.neighbours
    assert {r["request_id"]: r["champion"] for r in found["rechecks"]}[done.request_id] == run[
        "version" if run["promoted"] else "base_version"
    ]

    # What ended in an error is tried again by the next sweep, what is decided or cancelled is not.
    again = sweep(MODEL)
    assert (list(again["errors"]), again["runs"]) == ([bad.id], [])
    assert len(open_registry(done_workspace).versions(MODEL)) == 3


def test_what_came_back_is_seen_in_a_candidate(done_workspace: Workspace, done: Done) -> None:
    """The original knows the target, the champion does not; of several requests the worst counts."""
    request = open_ledger(done_workspace).get(done.request_id)
    registry = open_registry(done_workspace)
    with done_workspace.run_folder("test") as folder:
        found = {
            version: worst_of(
                [request], load("clip", Path(registry.pull(MODEL, version, folder / version).folder)), folder
            )
            for version in ("1", "2")
        }

    assert set(found["1"]) == {"earlier.fa1.after", "earlier.fa5.after"}
    assert found["2"]["earlier.fa1.after"].upper95 < 0.5 < found["1"]["earlier.fa1.after"].lower95


def test_the_champion_moves_by_hand_only_when_it_is_meant(done_workspace: Workspace, done: Done) -> None:
    registry = open_registry(done_workspace)

    with pytest.raises(InputError, match=f"would bring back what {done.request_id} erased"):
        rollback(MODEL, "2")
    with pytest.raises(PromotionConflict, match="decided against version 1"):
        rollback(MODEL, "1", allow_reinstating=True)
    assert registry.aliases(MODEL) == {"champion": "2", "previous": "1"}

    moved = rollback(MODEL, "2", allow_reinstating=True)
    assert (moved["from_version"], moved["to_version"], moved["outcome"]) == ("2", "1", "moved")
    assert registry.aliases(MODEL) == {"champion": "1", "previous": "2"}

    with pytest.raises(PromotionConflict, match="the champion of shapes is version 1"):
        promote(MODEL, "2", "7")
    assert promote(MODEL, "2", "1")["outcome"] == "moved"
    assert registry.aliases(MODEL) == {"champion": "2", "previous": "1"}
    assert list(done_workspace.runs.iterdir()) == []
