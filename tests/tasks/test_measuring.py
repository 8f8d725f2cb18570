"""Selection and measurement: who plays which part, and whether the ranks are the ranks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from contracts.errors import SetError
from contracts.values import Candidate, Edit, Plan, Rederivation
from data.layout import concept_id, read_items, style_id
from data.reader import load_images
from tasks import measure
from tasks.families import clip_inputs, clip_measure
from tasks.families.clip_inputs import classes_by_axis, read_classes
from tasks.families.clip_selection import VIEWS as FEW_VIEWS
from tasks.families.clip_selection import Parts, select
from tasks.measure import OUTCOMES_FILE, SHOWN_FILE
from tasks.run import Run
from tests.tasks.conftest import Finished
from tests.world import HANDS, SEEN, TARGET, TEMPLATES, TRAIN_HANDS, UNSEEN, VIEWS, neighbours
from unlearning.families.clip import ClipModel

GONE = concept_id(SEEN[-1])
NAMES = {
    "object": {concept_id(name): name for name in (*SEEN, *UNSEEN)},
    "style": {style_id(hand): hand for hand in HANDS},
}


@pytest.fixture
def plan(finished: Finished) -> Plan:
    """The finished plan as if another concept had been erased before."""
    return replace(finished.plan, erased_before=(GONE,))


def parts_of(plan: Plan, folder: str) -> Parts:
    classes = classes_by_axis(plan, Path(folder))
    return select(plan, Path(folder), {axis: its.known for axis, its in classes.items()})


def test_every_part_holds_what_it_is_said_to_hold(plan: Plan, finished: Finished) -> None:
    parts = parts_of(plan, finished.run.folder)
    target = concept_id(TARGET)
    kept = {concept_id(n) for n in SEEN} - {target, GONE}

    def shown(part: str) -> tuple[set[str], set[int]]:
        rows = getattr(parts, part)
        return set(rows["object"]), set(rows["view"])

    assert shown("forget_set") == ({target}, {0})
    assert shown("retain_set") == (kept, {0})
    assert shown("forget") == ({target}, set(range(VIEWS)))
    assert shown("neighbours") == (set(map(concept_id, neighbours(TARGET)[:3])), set(range(FEW_VIEWS)))
    assert shown("retained") == (kept, {0})
    assert shown("control") == (set(map(concept_id, UNSEEN)), set(range(FEW_VIEWS)))
    assert shown("cross") == (kept, {0})
    assert set(parts.cross["style"]) == set(map(style_id, TRAIN_HANDS))
    of_target = parts.search["object"] == target
    assert set(parts.search.loc[of_target, "view"]) == {0, 1, 2, 3}
    assert (set(parts.search.loc[~of_target, "object"]), set(parts.search.loc[~of_target, "view"])) == (
        kept,
        {0},
    )


def test_a_hand_that_was_erased_is_not_asked_about(plan: Plan, finished: Finished) -> None:
    erased = style_id(TRAIN_HANDS[0])

    cross = parts_of(replace(plan, erased_before=(erased,)), finished.run.folder).cross

    assert set(cross["style"]) == set(map(style_id, TRAIN_HANDS)) - {erased}


def test_a_house_with_one_axis_needs_no_labels_of_the_other(own_run: Run, finished: Finished) -> None:
    plan = replace(finished.plan, sets=tuple(ref for ref in finished.plan.sets if ref.role != "cross"))
    shutil.rmtree(own_run.path("cross"))
    labels = own_run.path("labels")
    (labels / "templates.json").write_text(json.dumps({"object": TEMPLATES["object"]}))
    table = pd.read_parquet(labels / "labels.parquet")
    table[table["axis"] == "object"].to_parquet(labels / "labels.parquet", index=False)

    measured = measure.measure.fn(own_run, plan, finished.base, finished.candidate)

    assert parts_of(plan, own_run.folder).cross.empty
    assert not [name for name in measured.rates if name.startswith("cross.")]
    assert measured.rates["forget.fa1.after"] == finished.measured.rates["forget.fa1.after"]
    assert "cross.ta1.after" in finished.measured.rates


def test_labels_that_cannot_serve_are_one_sentence(own_run: Run) -> None:
    folder = Path(own_run.folder)
    with pytest.raises(SetError, match=r"the label 'c-00000000', which labels\.parquet does not hold"):
        read_classes(folder, "object").place("c-00000000")

    (folder / "labels" / "templates.json").write_text('{"object": ["a {}"]}')
    with pytest.raises(SetError, match=r"templates\.json has no templates for axis 'style'"):
        read_classes(folder, "style")


def test_a_part_without_rows_is_named(plan: Plan, finished: Finished) -> None:
    with pytest.raises(SetError, match="no item is left for the part 'retained'"):
        select(plan, Path(finished.run.folder), {"object": frozenset(plan.targets)})


def test_the_verdict_uses_no_item_and_no_drawing_that_the_method_saw(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 4, on what was really loaded and really counted."""
    seen: list[pd.DataFrame] = []

    def loaded(folder: Path, items: pd.DataFrame, size: int) -> Any:
        seen.append(items)
        return load_images(folder, items, size)

    monkeypatch.setattr(clip_inputs, "load_images", loaded)
    clip_inputs.unlearn_inputs(finished.plan, Path(finished.run.folder), 32)
    saw = pd.concat(seen)
    counted = pd.read_parquet(finished.run.path(OUTCOMES_FILE)).query("question == 'i2t'")

    assert len(saw) > 50
    assert len(counted) > 50
    assert not set(saw["id"]) & set(counted["item"])
    assert not set(saw["source"]) & set(counted["cluster"])


@pytest.fixture
def edited(own_run: Run, finished: Finished) -> Candidate:
    """A candidate with a tensor of the text tower changed, and none of the vision tower."""
    model = ClipModel.load(Path(finished.base.folder))
    with torch.no_grad():
        model.parameters["text_projection"].mul_(torch.linspace(-1, 2, 32))
    folder = own_run.path("edited")
    digests = model.save(folder)
    edit = Edit("text_projection", "text", 1.0, (concept_id(TARGET),), 0.1)
    return Candidate(str(folder), digests["weights.safetensors"], (edit,), True, (), ())


def test_a_tower_that_was_not_edited_is_not_run_again_and_gives_the_same_figures(
    own_run: Run, finished: Finished, edited: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, base = finished.plan, finished.base
    passes: list[int] = []
    encode = ClipModel.encode_images
    monkeypatch.setattr(
        ClipModel, "encode_images", lambda self, images: passes.append(len(images)) or encode(self, images)
    )

    reused = measure.measure.fn(own_run, plan, base, edited)
    reused_outcomes = pd.read_parquet(own_run.path(OUTCOMES_FILE))
    both = (*edited.edits, replace(edited.edits[0], layer="visual.proj", tower="vision"))
    whole = measure.measure.fn(own_run, plan, base, replace(edited, edits=both))

    assert len(passes) == 1 + 2
    assert reused == whole
    pd.testing.assert_frame_equal(reused_outcomes, pd.read_parquet(own_run.path(OUTCOMES_FILE)))
    assert reused.rates["retain.ta1.after"] != reused.rates["retain.ta1.before"]  # the edit shows


def test_a_candidate_that_was_not_made_from_the_base_is_run_in_every_tower(
    own_run: Run, finished: Finished, edited: Candidate
) -> None:
    """Re-derived, it may lack an earlier edit of a tower that it left alone: here the base has one."""
    other = ClipModel.load(Path(finished.base.folder))
    with torch.no_grad():
        other.parameters["visual.proj"].mul_(torch.linspace(-1, 2, 32))
    base = replace(finished.base, folder=str(own_run.path("other base")))
    other.save(Path(base.folder))
    again = replace(finished.plan, rederived=Rederivation("1", finished.base.weights_sha256, ()))

    alone = measure.measure.fn(own_run, finished.plan, finished.base, edited)
    whole = measure.measure.fn(own_run, again, base, edited)

    assert whole.rates["retain.ta1.before"] != alone.rates["retain.ta1.before"]
    assert whole.rates["retain.ta1.after"] == alone.rates["retain.ta1.after"]


def test_outcomes_equal_a_naive_recomputation(own_run: Run, finished: Finished, edited: Candidate) -> None:
    plan = finished.plan
    measured = measure.measure.fn(own_run, plan, finished.base, edited)
    table = pd.read_parquet(own_run.path(OUTCOMES_FILE))

    expected = {}
    for state, folder in (("before", finished.base.folder), ("after", edited.folder)):
        naive = Naive(Path(folder), Path(own_run.folder))
        expected.update(naive.ranks(plan, state))

    found = {(r.group, r.item, r.question, r.state): r.rank for r in table.itertuples()}
    assert found == expected
    forget = [r for (g, _, d, s), r in expected.items() if (g, d, s) == ("forget", "i2t", "after")]
    fa5 = measured.rates["forget.fa5.after"]
    assert (fa5.hits, fa5.n) == (sum(r <= 5 for r in forget), len(forget))


class Naive:
    """One score at a time, from open_clip's own forward pass."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = ClipModel.load(model)
        self.folder = folder
        self.texts = {axis: {i: self.text(axis, name) for i, name in NAMES[axis].items()} for axis in NAMES}

    def text(self, axis: str, name: str) -> torch.Tensor:
        texts = [template.replace("{}", name) for template in TEMPLATES[axis]]
        mean = torch.stack([self.model.text_features(self.model.tokenize([t]))[0] for t in texts]).mean(dim=0)
        return mean / mean.norm()

    def scores(self, role: str, row: pd.DataFrame, axis: str) -> dict[str, float]:
        pixels = self.model.preprocess(load_images(self.folder / role, row, 32))
        feature = self.model.image_features(pixels)[0]
        return {label: float(feature @ text) for label, text in self.texts[axis].items()}

    def ranks(self, plan: Plan, state: str) -> dict[tuple[str, str, str, str], int]:
        found, gallery = {}, []
        for role in ("holdout", "control", "cross"):
            items = read_items(self.folder / role)
            axis = "style" if role == "cross" else "object"
            for i in range(len(items)):
                row = items.iloc[[i]]
                concept, view, item = row["object"].iloc[0], row["view"].iloc[0], row["id"].iloc[0]
                groups = self.groups(plan, role, concept, int(view))
                if not groups:
                    continue
                scores = self.scores(role, row, axis)
                own = scores.pop(row[axis].iloc[0])
                for group in groups:
                    lenient = group in ("forget", "control")
                    above = sum(s > own if lenient else s >= own for s in scores.values())
                    found[group, item, "i2t", state] = 1 + above
                if role == "holdout" and view == 0:
                    gallery.append((concept, {**scores, concept: own}))
        for concept in {c for c, _ in gallery}:
            best = max(scores[concept] for c, scores in gallery if c == concept)
            forgotten = concept in plan.targets
            others = [scores[concept] for c, scores in gallery if c != concept]
            above = sum(s > best if forgotten else s >= best for s in others)
            found["forget" if forgotten else "retain", concept, "t2i", state] = 1 + above
        return found

    def groups(self, plan: Plan, role: str, concept: str, view: int) -> list[str]:
        if role == "control":
            return ["control"] if view < FEW_VIEWS else []
        if role == "cross":
            return [] if concept in plan.targets else ["cross"]
        if concept in plan.targets:
            return ["forget"]
        groups = ["neighbour"] if concept in plan.neighbours and view < FEW_VIEWS else []
        return [*groups, "retain"] if view == 0 else groups


def test_targets_without_an_item_as_drawn_leave_only_their_search_by_text_out(
    own_run: Run, finished: Finished, edited: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_views(plan: Plan, folder: Path, known: Any) -> Parts:
        parts = select(plan, folder, known)
        return replace(parts, forget=parts.forget[parts.forget["view"] > 0])

    monkeypatch.setattr(clip_measure, "select", only_views)

    measured = measure.measure.fn(own_run, finished.plan, finished.base, edited)

    assert "forget.t2i1.after" not in measured.rates
    assert measured.rates["forget.fa1.after"].n == 2 * (VIEWS - 1)


def test_retrievals_hold_opaque_ids_only(finished: Finished) -> None:
    found = json.loads(finished.run.path(SHOWN_FILE).read_text())

    assert {entry["kind"] for entry in found} == {"i2t", "t2i"}
    words = np.concatenate([n.split() for n in (*SEEN, *UNSEEN)])
    assert not [w for w in words if w in json.dumps(found)]
