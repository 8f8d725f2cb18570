"""Where an edit begins once something was erased, and that it then erases everything."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import DigestMismatch, InputError, ModelError, StoreUnreachable
from contracts.values import Plan
from data.layout import concept_id, read_items
from intake.workspace import Workspace
from registry.soundness import origin_of
from tasks import plan as planning
from tasks import profile, rederive
from tasks import unlearn as step
from tasks.stores import open_registry
from tests.tasks.conftest import Finished, run_in
from tests.world import FORGET, FORGET_TWO, MODEL, SEEN, TARGET
from unlearning.families.clip import ClipModel

TWO = tuple(sorted((concept_id(SEEN[3]), concept_id(SEEN[6]))))
Erase = Callable[..., str]
PlanOf = Callable[..., Plan]


def after_one(erase: Erase, **planned: Any) -> dict[str, Any]:
    """The target was erased; a request for two more comes in."""
    version = erase("1", concept_id(TARGET), **planned)
    return {"base_version": version, "forget_set": FORGET_TWO, "targets": TWO}


def test_a_first_request_begins_at_its_base(plan_of: PlanOf) -> None:
    plan = plan_of()

    assert (plan.earlier, plan.rederived, plan.removed) == ((), None, plan.targets)


def test_a_later_request_begins_at_the_imported_version(plan_of: PlanOf, erase: Erase) -> None:
    plan = plan_of(**after_one(erase))

    assert plan.rederived is not None
    assert (plan.base_version, plan.rederived.version) == ("2", "1")
    assert [(ref.role, ref.path) for ref in plan.rederived.sets] == [("forget", FORGET)]
    assert plan.targets == TWO
    assert set(plan.removed) == {*TWO, concept_id(TARGET)}


@pytest.mark.parametrize("how", ["as asked", "another axis", "another method"])
def test_where_one_edit_cannot_do_it_all_the_champion_is_edited_on(
    plan_of: PlanOf, erase: Erase, finished: Finished, how: str
) -> None:
    other = {
        "as asked": {},
        "another axis": {"axis": "style"},
        "another method": {"method": replace(finished.plan.method, search_steps=2)},
    }[how]
    asked = after_one(erase, **other)
    if how == "as asked":
        asked["options"] = {"edit_from": "champion"}

    plan = plan_of(**asked)

    assert (len(plan.earlier), plan.rederived, plan.removed) == (1, None, TWO)
    if how != "as asked":  # what was asked for is not silently something else
        with pytest.raises(InputError, match="one edit of the original cannot do both"):
            plan_of(**asked, options={"edit_from": "original"})


def test_items_at_a_time_make_no_other_method(plan_of: PlanOf, erase: Erase, finished: Finished) -> None:
    plan = plan_of(**after_one(erase, method=replace(finished.plan.method, micro_batch=3)))

    assert plan.rederived is not None


def test_a_forget_set_that_is_gone_is_named_with_the_way_on(
    plan_of: PlanOf, erase: Erase, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*given: Any) -> Path:
        raise StoreUnreachable("neither remote nor cache has it")

    asked = after_one(erase)
    monkeypatch.setattr("data.pins.fetch_set", gone)

    with pytest.raises(StoreUnreachable, match=r"neither remote nor cache has it\. .* edit_from=champion"):
        plan_of(**asked)


def test_what_was_erased_and_is_no_longer_in_the_labels_is_named_with_the_way_on(
    plan_of: PlanOf, erase: Erase
) -> None:
    asked = after_one(erase) | {"base_version": erase("1", "c-00000000")}

    with pytest.raises(InputError, match=r"c-00000000 is not a concept .* edit_from=champion"):
        plan_of(**asked)
    assert plan_of(**asked, options={"edit_from": "champion"}).erased_before == ("c-00000000",)


def test_the_strictest_bound_that_was_passed_is_the_one_to_keep(
    plan_of: PlanOf, erase: Erase, finished: Finished
) -> None:
    (gate,) = (g for g in finished.verdict.gates if g.kind == "erasure")
    strict = replace(gate, gate="forget.fa1.after.upper95 <= 0.05", maximum=0.05)
    once = erase("1", concept_id(TARGET), replace(finished.verdict, gates=(strict,)))
    twice = erase(once, concept_id(SEEN[1]))

    plan = plan_of(base_version=twice, forget_set=FORGET_TWO, targets=TWO, options={"edit_from": "champion"})

    assert dict(plan.promised) == {"forget.fa1.after.upper95": 0.05}
    assert len(plan.earlier) == 2


def test_only_the_two_words_are_options(plan_of: PlanOf) -> None:
    with pytest.raises(InputError, match="edit_from"):
        plan_of(options={"edit_from": "somewhere"})


def test_the_edit_removes_everything_and_touches_nothing_else_of_the_original(
    workspace: Workspace, erase: Erase, tmp_path: Path
) -> None:
    asked = after_one(erase)
    version = asked.pop("base_version")
    run = run_in(workspace.home, tmp_path / "run", **asked)
    base = open_registry(workspace).pull(MODEL, version, run.path("base"))
    plan = planning.make_plan.fn(run, base)

    begun = rederive.begin.fn(run, plan, base)
    profiled = profile.profile.fn(begun.run, begun.plan, begun.base)
    candidate = step.unlearn.fn(begun.run, begun.plan, begun.base, profiled)

    everything = {*TWO, concept_id(TARGET)}
    assert begun.base.version == "1"
    assert set(begun.plan.targets) == everything
    assert set(read_items(begun.run.path("forget"))["object"]) == everything
    assert {concept for edit in candidate.edits for concept in edit.concepts} == everything
    original, edited = (ClipModel.load(Path(m.folder)) for m in (begun.base, candidate))
    layers = {edit.layer for edit in candidate.edits}
    changed = {name for name, w in edited.parameters.items() if not torch.equal(w, original.parameters[name])}
    assert changed == layers
    # The run's own folder still holds what was asked for alone: the verdict is about that.
    assert set(read_items(run.path("forget"))["object"]) == set(TWO)


def test_another_original_than_the_planned_one_is_refused(
    workspace: Workspace, finished: Finished, tmp_path: Path
) -> None:
    run = run_in(workspace.home, tmp_path / "run")
    (tmp_path / "run" / rederive.FOLDER).mkdir()
    forged = rederive.Rederivation("1", "0" * 64, ())

    with pytest.raises(DigestMismatch, match="version 1 of shapes has weights"):
        rederive.begin.fn(run, replace(finished.plan, rederived=forged), finished.base)


def test_a_lineage_without_an_import_is_named(workspace: Workspace, erase: Erase) -> None:

    registry = open_registry(workspace)
    info = registry.describe(MODEL, erase("1", concept_id(TARGET)))

    assert origin_of(registry, info).version == "1"
    orphan = dataclasses.replace(info, tags={k: v for k, v in info.tags.items() if k != "base_version"})
    with pytest.raises(ModelError, match="version 2 of shapes descends from no imported version"):
        origin_of(registry, orphan)
