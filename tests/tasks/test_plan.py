"""The plan: what it pins, what it refuses, and that its digest changes with everything that decides."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contracts.errors import InputError, SetError
from contracts.values import Plan, Rederivation
from data.layout import concept_id, items_sha256, read_items
from tasks.machine import threads as threads_of_a_run
from tests.repository import git
from tests.world import (
    FORGET,
    FORGET_OVERLAP,
    FORGET_TWO,
    MODEL,
    SEEN,
    TARGET,
    UNSEEN,
    World,
    neighbours,
)

PlanOf = Callable[..., Plan]
TWO = (concept_id(SEEN[3]), concept_id(SEEN[6]))


def test_a_plan_pins_every_set_at_the_commit(plan_of: PlanOf, world: World) -> None:
    plan = plan_of(validate=True)

    assert {ref.role: ref.path for ref in plan.sets} == {
        "forget": FORGET,
        **{role: f"sets/{role}" for role in ("retain", "search", "holdout", "control", "cross")},
    }
    for ref in plan.sets:
        items = read_items(world.root / ref.path)
        assert (ref.revision, ref.n_items) == (git(world.root, "rev-parse", "HEAD"), len(items))
        assert ref.items_sha256 == items_sha256(items)
    assert plan.gates_sha256 == hashlib.sha256((world.root / "gates/wide.yaml").read_bytes()).hexdigest()
    assert (plan.base_version, plan.method.forget_at, plan.erased_before) == ("1", 1, ())


def test_neighbours_come_nearest_first(plan_of: PlanOf) -> None:
    assert plan_of().neighbours == tuple(map(concept_id, neighbours(TARGET)[:3]))


def test_neighbours_of_several_targets_take_turns_and_are_no_targets(plan_of: PlanOf) -> None:
    plan = plan_of(forget_set=FORGET_TWO, targets=TWO)

    ranked = [list(map(concept_id, neighbours(name))) for name in sorted((SEEN[3], SEEN[6]), key=concept_id)]
    turns = itertools.chain.from_iterable(zip(*ranked, strict=True))
    assert plan.neighbours == tuple(dict.fromkeys(n for n in turns if n not in TWO))[:3]


def test_a_neighbour_without_a_held_out_drawing_gives_way_to_the_next(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour that cannot be measured would make every certificate of a passed run impossible."""
    first, *others = map(concept_id, neighbours(TARGET))

    def without_first(folder: Path) -> pd.DataFrame:
        items = read_items(folder)
        return items[items["object"] != first] if folder.name == "holdout" else items

    monkeypatch.setattr("data.layout.read_items", without_first)

    assert plan_of().neighbours == tuple(others[:3])


def test_what_the_base_has_forgotten_is_neither_target_nor_neighbour(
    plan_of: PlanOf, erase: Callable[..., str]
) -> None:
    near = list(map(concept_id, neighbours(TARGET)))
    second = erase("1", near[0])
    third = erase(second, near[2])
    fourth = erase("1", concept_id(TARGET))

    plan = plan_of(base_version=third, options={"edit_from": "champion"})

    assert plan.erased_before == tuple(sorted((near[0], near[2])))
    assert plan.neighbours == (near[1], near[3], near[4])
    with pytest.raises(InputError, match=f"{concept_id(TARGET)} was erased from version {fourth}"):
        plan_of(base_version=fourth)


@pytest.mark.parametrize("unknown", ["c-00000000", concept_id(UNSEEN[0])])
def test_a_target_that_the_model_never_knew_is_refused(plan_of: PlanOf, unknown: str) -> None:
    with pytest.raises(InputError, match=f"{unknown} is not a concept that {MODEL} knows"):
        plan_of(targets=(unknown,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"targets": TWO}, "the forget set holds no item of target"),
        ({"forget_set": "sets/retain"}, "sets/retain is a retain set, a forget set is needed"),
        ({"forget_set": FORGET_OVERLAP, "validate": True}, "the forget and retain sets share 2 images"),
    ],
)
def test_a_forget_set_that_cannot_serve_is_refused(
    plan_of: PlanOf, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SetError, match=said):
        plan_of(**changes)


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ("gates/unknown.yaml", "'forget.fa9.after.upper95'"),
        ("../gates.yaml", "leaves the repository"),
        ("gates/none.yaml", "cannot be read"),
    ],
)
def test_a_gate_file_that_cannot_decide_is_refused(plan_of: PlanOf, gates: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan_of(options={"gates": gates})


def test_threads_are_the_houses_then_open_mps_then_one_per_core_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)))
    monkeypatch.delenv("SLUGLINE_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_a_run() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert threads_of_a_run() == 2
    monkeypatch.setenv("SLUGLINE_THREADS", "5")
    assert threads_of_a_run() == 5


@pytest.mark.parametrize("threads", ["0", "two"])
def test_a_thread_count_that_is_none_is_named(
    plan_of: PlanOf, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    monkeypatch.setenv("SLUGLINE_THREADS", threads)

    with pytest.raises(InputError, match=f"SLUGLINE_THREADS is '{threads}'"):
        plan_of()


def test_equal_inputs_make_equal_plans_and_options_other_ones(plan_of: PlanOf) -> None:
    plan = plan_of()

    assert plan_of().sha256 == plan.sha256
    for options in ({"seed": 1}, {"gates": "gates/strict.yaml"}, {"method": {"forget_target": 0.1}}):
        assert plan_of(options=options).sha256 != plan.sha256


def test_an_earlier_plan_binds(plan_of: PlanOf) -> None:
    plan = plan_of()

    assert plan_of(plan=plan, revision=None) == plan
    with pytest.raises(InputError, match="another plan \\(seed, software changed since\\)"):
        plan_of(plan=replace(plan, software={"torch": "0"}, seed=9))


OTHER: dict[str, Any] = {
    "axis": "style",
    "targets": TWO,
    "neighbours": (),
    "sets": (),
    "seed": 1,
    "threads": 2,
    "processes": 2,
    "software": {"torch": "0"},
    "erased_before": TWO,
    "earlier": ("req-00000000000000ab",),
    "promised": {"forget.fa1.after.upper95": 0.1},
    "rederived": Rederivation("1", "0" * 64, ()),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Plan)])
def test_every_field_of_a_plan_changes_its_digest(finished: Any, field: str) -> None:
    plan = finished.plan
    other = replace(plan.method, search_steps=99) if field == "method" else OTHER.get(field, "other")

    assert replace(plan, **{field: other}).sha256 != plan.sha256


def test_labels_without_their_file_are_one_sentence(tmp_path: Path) -> None:
    from tasks.plan import read_labels

    with pytest.raises(SetError, match=r"labels\.parquet is missing"):
        read_labels(tmp_path)
    (tmp_path / "labels.parquet").write_bytes(b"no parquet")
    with pytest.raises(SetError, match="no parquet"):
        read_labels(tmp_path)
