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
from tasks.requests import take_in
from tasks.stores import open_ledger, open_registry
from tests.world import FORGET_OVERLAP, FORGET_TWO, MODEL, SEEN, TARGET, Done


def test_a_sweep_runs_what_waits_and_rechecks_what_passed(done_workspace: Workspace, done: Done) -> None:
    ledger = open_ledger(done_workspace)
    bad = take_in(done_workspace, MODEL, "object", FORGET_OVERLAP)
    good = take_in(done_workspace, MODEL, "object", FORGET_TWO)
    cancelled = take_in(done_workspace, MODEL, "object", FORGET_TWO)
    ledger.cancel(cancelled.id)

    found = sweep(MODEL)

    # A set that cannot serve does not stop the next request.
    assert found["errors"] == {bad.id: "SetError"}
    assert ledger.get(bad.id).state == "error"
    (run,) = found["runs"]
    assert (run["request"], run["concepts"], run["base_version"], run["version"]) == (good.id, 2, "2", "3")
    plan = read_statement(parse(Path(run["certificate"]).read_bytes())).plan
    assert plan.erased_before == (concept_id(TARGET),)
    assert set(plan.targets) == {concept_id(SEEN[3]), concept_id(SEEN[6])}
    assert concept_id(TARGET) not in plan.neighbours
    assert {r["request_id"]: r["champion"] for r in found["rechecks"]}[done.request_id] == run[
        "version" if run["promoted"] else "base_version"
    ]

    # What ended in an error is tried again by the next sweep, what is decided or cancelled is not.
    again = sweep(MODEL)
    assert (list(again["errors"]), again["runs"]) == ([bad.id], [])
    assert len(open_registry(done_workspace).versions(MODEL)) == 3


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
