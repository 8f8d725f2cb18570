"""Flows over several requests, and the champion moved by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from contracts.errors import InputError, PromotionConflict, SetError
from contracts.values import Candidate, Edit, ModelHandle, Plan
from data.layout import concept_id
from evidence.schema import read_statement
from evidence.strict_json import parse
from flows.aliases import promote, rollback
from flows.sweep import sweep
from intake.workspace import Workspace
from tasks import gate, measure, pull
from tasks import plan as planning
from tasks.families import load
from tasks.recheck import worst_of
from tasks.requests import take_in
from tasks.run import Run
from tasks.stores import open_ledger, open_registry
from tests.tasks.conftest import run_in
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


def test_an_error_that_is_not_ours_does_not_stop_the_others(
    done_workspace: Workspace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = [take_in(done_workspace, MODEL, "object", FORGET_TWO).id for _ in range(2)]
    tried: list[str] = []

    def refused(request_id: str) -> None:
        tried.append(request_id)
        raise PermissionError(13, "Permission denied", "/somewhere/a name")

    monkeypatch.setattr("flows.sweep.unlearn", refused)
    found = sweep(MODEL)

    assert found["errors"] == dict.fromkeys(waiting, "PermissionError")
    assert sorted(tried) == sorted(waiting)
    assert len(found["rechecks"]) == 1
    assert "a name" not in caplog.text


def test_a_sweep_of_an_unknown_model_says_so(done_workspace: Workspace) -> None:
    with pytest.raises(InputError, match="no model 'nosuch'"):
        sweep("nosuch")


def test_a_candidate_that_knows_again_what_was_erased_fails(
    done_workspace: Workspace, done: Done, tmp_path: Path
) -> None:
    """As candidates, the original, which knows the target of the request before, and the champion itself."""
    run, base, plan = later_run(done_workspace, tmp_path)
    original = open_registry(done_workspace).pull(MODEL, "1", run.path("original"))
    edit = Edit("text_projection", "text", 1.0, plan.targets, 0.1)

    found = {}
    for model in (original, base):
        candidate = Candidate(model.folder, model.weights_sha256, (edit,), True, (), ())
        verdict = gate.gate.fn(run, plan, measure.measure.fn(run, plan, base, candidate))
        (carried,) = (g for g in verdict.gates if g.metric.startswith("earlier."))
        found[model.version] = carried.result

    assert plan.earlier == (done.request_id,)
    assert found == {"1": "failed", "2": "passed"}


def test_of_several_earlier_requests_the_worst_counts(
    done_workspace: Workspace, done: Done, tmp_path: Path
) -> None:
    run, base, _ = later_run(done_workspace, tmp_path)
    gone = open_ledger(done_workspace).get(done.request_id)
    assert gone.plan is not None
    known = replace(gone, plan={**gone.plan, "targets": [concept_id(SEEN[3])]})
    model = load("clip", Path(base.folder))

    one, other = (
        worst_of([request], model, run, Path(run.folder))["earlier.fa1.after"] for request in (gone, known)
    )

    assert one.upper95 < other.upper95
    for order in ([gone, known], [known, gone]):
        assert worst_of(order, model, run, Path(run.folder)) == {"earlier.fa1.after": other}


@pytest.mark.parametrize("role", ["search", "forget"])
def test_a_holdout_of_then_that_the_edit_of_today_has_seen_decides_nothing(
    done_workspace: Workspace, done: Done, tmp_path: Path, role: str
) -> None:
    """Seen is what lies where the edit looked: of a re-derived one, the joined forget sets."""
    run, base, _ = later_run(done_workspace, tmp_path)
    shown = tmp_path / "joined"
    shown.mkdir()
    for own in ("forget", "retain", "search"):
        (shown / own).symlink_to(run.path("holdout" if own == role else own))
    request, model = open_ledger(done_workspace).get(done.request_id), load("clip", Path(base.folder))

    worst_of([request], model, run, Path(run.folder))
    with pytest.raises(
        SetError, match=rf"which decided {done.request_id}, shows a drawing of the {role} set"
    ):
        worst_of([request], model, run, shown)


def later_run(workspace: Workspace, folder: Path) -> tuple[Run, ModelHandle, Plan]:
    """Pulled and planned: a request after that of `done`, edited on from the champion."""
    two = tuple(sorted((concept_id(SEEN[3]), concept_id(SEEN[6]))))
    asked = {"forget_set": FORGET_TWO, "targets": two, "request_id": "req-00000000000000bb"}
    run = run_in(workspace.home, folder / "run", **asked, options={"edit_from": "champion"})
    base = pull.pull.fn(run)
    return run, base, planning.make_plan.fn(run, base)


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
