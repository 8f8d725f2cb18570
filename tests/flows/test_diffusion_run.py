"""A request to a text-to-image model, from door to door, and what its figures mean."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from contracts.errors import InputError
from data.diffusion_sets import PARTS, seeds
from data.layout import concept_id, read_items, style_id
from evidence.schema import read_statement
from evidence.strict_json import parse
from evidence.verify import verify
from flows.unlearn import unlearn
from intake.workspace import Workspace
from tasks.families import family_tasks, load
from tasks.families.diffusion import OF_KEPT, PICTURES
from tasks.requests import take_in
from tasks.stores import open_ledger, open_registry
from tests.diffusion_world import FORGET, FORGET_HAND, MODEL, TARGET, make
from tests.repository import dvc_site
from tests.unlearning.diffusion_trained import BLOCKS, GROUNDS, UNSEEN_BLOCK, UNSEEN_GROUND
from tests.world import Done, World, carried_out, work_in
from unlearning import methods
from unlearning.drawing import draw
from unlearning.judge import Judge

KEPT_PROMPTS = 2 * (len(BLOCKS) - 1)  # two drawings of every other block, by one caption each


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("painting")
    with dvc_site(folder):
        return make(folder)


@pytest.fixture(scope="module")
def painted(painting: World, tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Done:
    return carried_out(painting, tmp_path_factory.mktemp("painted") / "home", MODEL, FORGET, TARGET)


@pytest.fixture
def workspace(painting: World, painted: Done, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    work_in(monkeypatch, painting, painted.home)
    return Workspace.open()


def test_every_drawing_of_the_grid_stands_in_one_set_and_every_set_has_every_object(painting: World) -> None:
    sets = {name: read_items(painting.root / f"sets/diffusion-{name}") for name in dict.fromkeys(PARTS)}
    sources = [set(items["source"]) for items in sets.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == len(BLOCKS) * len(GROUNDS)
    for items in sets.values():
        assert set(items["object"]) == {concept_id(name) for name in BLOCKS}
    # Prompts of the verdict are worded as no other set words them.
    wording = {name: {text.split(" ")[0] for text in items["caption"]} for name, items in sets.items()}
    assert wording["holdout"] == {"this"}
    assert all("this" not in words for name, words in wording.items() if name != "holdout")


def test_every_picture_has_noise_of_its_own(painting: World) -> None:
    names = ("search", "holdout", "control", "style-control")
    drawn = [seed for n in names for seed in seeds(read_items(painting.root / f"sets/diffusion-{n}"))]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_the_labels_tell_what_the_model_drew_and_what_it_never_did(painting: World) -> None:
    labels = pd.read_parquet(painting.root / "labels/labels.parquet").set_index("id")
    judge = Judge.load(painting.root / "labels")
    assert set(labels.index) == {*judge.config.objects, *judge.config.styles}
    assert set(labels.index[~labels["seen"]]) == {concept_id(UNSEEN_BLOCK[0]), style_id(UNSEEN_GROUND[0])}


def test_the_result_tells_the_familys_own_measures(painted: Done) -> None:
    result = painted.result
    assert set(result["forget"]) == {"n", "recognised_before", "recognised_after", "recognised_after_upper95"}
    assert result["forget"]["n"] == PICTURES
    assert result["forget"]["recognised_after"] < result["forget"]["recognised_before"]
    assert result["retain"]["n"] == OF_KEPT * KEPT_PROMPTS
    assert result["edited"][0]["tower"] == "text"
    assert set(result["levels"]) == {"retain.likeness"}


def test_the_certificate_is_verified_and_pins_the_judge(
    workspace: Workspace, painting: World, painted: Done, tmp_path: Path
) -> None:
    registry = open_registry(workspace)
    handle = registry.pull(MODEL, painted.result["version"], tmp_path)
    certificate = Path(painted.result["certificate"])
    assert handle.family == "diffusion"
    assert verify(certificate, model_folder=Path(handle.folder)).ok
    predicate = read_statement(parse(certificate.read_bytes()))
    groups = {name.split(".")[0] for name in predicate.measurements.rates}
    assert {"forget", "retain", "cross", "neighbours", "control"} <= groups
    from tasks.plan import labels_sha256

    assert predicate.plan.labels_sha256 == labels_sha256(painting.root / "labels")
    weights = painting.root / "labels/weights.safetensors"
    kept = weights.read_bytes()
    weights.unlink()  # it may be a link into DVC's cache
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert predicate.plan.labels_sha256 != labels_sha256(painting.root / "labels")
    weights.write_bytes(kept)


def test_only_the_edited_tensor_differs(workspace: Workspace, painted: Done, tmp_path: Path) -> None:
    registry = open_registry(workspace)
    before, after = (
        load_file(Path(registry.pull(MODEL, version, tmp_path / version).folder) / "weights.safetensors")
        for version in ("1", painted.result["version"])
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {edit["layer"] for edit in painted.result["edited"]}


def test_the_figures_are_those_of_pictures_drawn_again(
    painting: World, workspace: Workspace, painted: Done, tmp_path: Path
) -> None:
    registry, judge = open_registry(workspace), Judge.load(painting.root / "labels")
    held = read_items(painting.root / "sets/diffusion-holdout")
    kept = held[held["object"] != concept_id(TARGET)].drop_duplicates("source")
    wanted = [judge.config.objects.index(label) for label in kept["object"]]
    for version, state in (("1", "before"), (painted.result["version"], "after")):
        model = load("diffusion", Path(registry.pull(MODEL, version, tmp_path / version).folder))
        said = judge(draw(model, list(kept["caption"]), seeds(kept))).objects.argmax(1)
        told = painted.result["retain"][f"recognised_{state}"]
        assert told == pytest.approx(float(np.mean(said.numpy() == wanted)))


def test_the_report_shows_pictures_before_and_after(painted: Done) -> None:
    page = Path(painted.result["report"])
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= 16  # two pictures each, of forgotten and of kept
    for words in ("before", "after", "recognised", "Margin"):
        assert words in text
    assert "FA@" not in text.partition("How to repeat the run")[0]
    told = json.loads(page.with_name("report.json").read_text())
    likeness = told["measurements"]["levels"]["retain.likeness"]
    # Pictures of one prompt stand and fall together.
    assert (likeness["n"], likeness["clusters"]) == (OF_KEPT * KEPT_PROMPTS, KEPT_PROMPTS)


def test_a_recheck_would_find_what_the_run_found(
    painting: World, workspace: Workspace, painted: Done, tmp_path: Path
) -> None:
    predicate = read_statement(parse(Path(painted.result["certificate"]).read_bytes()))
    (tmp_path / "holdout").symlink_to(painting.root / "sets/diffusion-holdout")
    (tmp_path / "labels").symlink_to(painting.root / "labels")
    folder = Path(open_registry(workspace).pull(MODEL, painted.result["version"], tmp_path / "model").folder)
    found = family_tasks("diffusion").forgotten(predicate.plan, tmp_path, load("diffusion", folder)).rates
    assert set(found) == {"forget.recognised.after"}
    assert all(predicate.measurements.rates[name] == rate for name, rate in found.items())


def test_a_hand_is_forgotten_by_the_same_road(workspace: Workspace) -> None:
    request = take_in(workspace, MODEL, "style", FORGET_HAND)
    assert request.targets == (style_id("plum"),)
    result = unlearn(request.id)
    predicate = read_statement(parse(Path(result["certificate"]).read_bytes()))
    rates = predicate.measurements.rates
    # Objects are the other axis now, and every other hand is a neighbour or merely kept.
    assert rates["retain.recognised.after"].n == rates["cross.recognised.after"].n
    assert rates["control.recognised.after"].n == 2 * len(BLOCKS)
    assert (
        rates["forget.recognised.after"].clusters
        == predicate.measurements.rates["forget.recognised.before"].clusters
    )


def test_a_method_of_another_family_is_refused_at_the_door(
    painting: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(monkeypatch, painting, tmp_path / "home")
    with pytest.raises(InputError, match="uce edits models of family clip, this one is of diffusion"):
        take_in(Workspace.open(), MODEL, "object", FORGET, options={"method": {"name": "uce"}})


def test_gradients_of_the_matching_clip_can_be_asked_for_where_the_model_has_it(
    painting: World, workspace: Workspace, painted: Done, tmp_path: Path
) -> None:
    told = {"method": {"name": "slug", "objective": "clip"}}
    with pytest.raises(InputError, match="objective of a model of family diffusion must be of unet, clip"):
        take_in(workspace, MODEL, "style", FORGET_HAND, options={"method": {"objective": "answers"}})
    open_ledger(workspace).cancel(take_in(workspace, MODEL, "style", FORGET_HAND, options=told).id)
    plan = read_statement(parse(Path(painted.result["certificate"]).read_bytes())).plan
    for role in ("forget", "retain", "search"):
        source = FORGET if role == "forget" else f"sets/diffusion-{role}"
        (tmp_path / role).symlink_to(painting.root / source)
    (tmp_path / "labels").symlink_to(painting.root / "labels")
    asked = replace(plan, method=replace(plan.method, objective="clip"))
    model, tasks = load("diffusion", painting.model), family_tasks("diffusion")
    assert tasks.request(plan, tmp_path, model).objective == "unet"
    request = tasks.request(asked, tmp_path, model)
    assert request.objective == "clip"
    with pytest.raises(InputError, match="the model has no matching CLIP: import it with --clip"):
        methods.profile(model, request, replace(asked.method, name="slug"))
