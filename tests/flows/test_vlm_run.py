"""A request to a vision-language model, from door to door."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from contracts.errors import InputError, SetError
from contracts.values import Tower
from data.layout import concept_id, read_items
from data.reader import load_images
from evidence.schema import read_statement
from evidence.strict_json import parse
from evidence.verify import verify
from gates.suite import load_suite
from intake.workspace import Workspace
from tasks.families import family_tasks, load, vlm
from tasks.requests import take_in
from tasks.stores import open_registry
from tests.repository import dvc_site
from tests.vlm_world import MODEL, make
from tests.world import FORGET, SEEN, TARGET, UNSEEN, Done, World, carried_out, work_in
from unlearning.families.vlm import VlmModel
from unlearning.naming import Names


@pytest.fixture(scope="module")
def answering(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("answering")
    with dvc_site(folder):
        return make(world, folder)


@pytest.fixture(scope="module")
def answered(answering: World, tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Done:
    return carried_out(answering, tmp_path_factory.mktemp("answered") / "home", MODEL, FORGET, TARGET)


@pytest.fixture
def workspace(answering: World, answered: Done, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    work_in(monkeypatch, answering, answered.home)
    return Workspace.open()


def lay_out(world: World, folder: Path) -> None:
    """The sets of the world as a run's folder has them."""
    for role in ("forget", "retain", "search", "holdout", "control"):
        (folder / role).symlink_to(world.root / (FORGET if role == "forget" else f"sets/{role}"))
    (folder / "labels").symlink_to(world.root / "labels")


def test_the_result_tells_what_is_still_named(answered: Done) -> None:
    result = answered.result
    assert set(result["forget"]) == {"n", "named_before", "named_after", "named_after_upper95"}
    assert set(result["retain"]) == {"n", "named_before", "named_after", "drop_upper95"}
    assert {edit["tower"] for edit in result["edited"]} == {"vision"}
    assert result["forget"]["named_after"] < result["forget"]["named_before"]


def test_only_the_edited_tensor_differs(workspace: Workspace, answered: Done, tmp_path: Path) -> None:
    registry = open_registry(workspace)
    before, after = (
        load_file(Path(registry.pull(MODEL, version, tmp_path / version).folder) / "weights.safetensors")
        for version in ("1", answered.result["version"])
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {edit["layer"] for edit in answered.result["edited"]}


def test_the_figures_are_those_of_the_models_answers(
    answering: World, workspace: Workspace, answered: Done, tmp_path: Path
) -> None:
    held = read_items(answering.root / "sets/holdout")
    held = held[held["object"] == concept_id(TARGET)]
    images = load_images(answering.root / "sets/holdout", held, 32)
    for version, state in (("1", "before"), (answered.result["version"], "after")):
        handle = open_registry(workspace).pull(MODEL, version, tmp_path / version)
        model = load("vlm", Path(handle.folder))
        said = model.answers(images, ["what is this?"] * len(images))
        rate = Names([*SEEN, *UNSEEN]).rate(said, [SEEN.index(TARGET)] * len(said))
        assert answered.result["forget"][f"named_{state}"] == pytest.approx(rate)


def test_certificate_and_recheck_say_what_the_run_said(
    answering: World, workspace: Workspace, answered: Done, tmp_path: Path
) -> None:
    handle = open_registry(workspace).pull(MODEL, answered.result["version"], tmp_path / "model")
    certificate = Path(answered.result["certificate"])
    assert verify(certificate, model_folder=Path(handle.folder)).ok
    predicate = read_statement(parse(certificate.read_bytes()))
    names = set(predicate.measurements.rates)
    assert {"control.named.after", "cross.count.before", "cross.colour.after"} <= names
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "holdout").symlink_to(answering.root / "sets/holdout")
    (folder / "labels").symlink_to(answering.root / "labels")
    found = family_tasks("vlm").forgotten(predicate.plan, folder, load("vlm", Path(handle.folder))).rates
    asked = [f"forget.{how}.after" for how in ("named", "reworded", "affirmed")]
    assert found == {name: predicate.measurements.rates[name] for name in asked}


def test_an_edit_of_one_question_is_seen_through(
    answering: World, workspace: Workspace, answered: Done, tmp_path: Path
) -> None:
    """Negative control: a model that is silent about its own question and says the name to any other."""
    predicate = read_statement(parse(Path(answered.result["certificate"]).read_bytes()))
    for name in ("holdout", "labels"):
        (tmp_path / name).symlink_to(answering.root / ("labels" if name == "labels" else "sets/holdout"))
    handle = open_registry(workspace).pull(MODEL, answered.result["version"], tmp_path / "model")
    evasive = load("vlm", Path(handle.folder))
    own, asked = evasive.chat.asks.question, []

    def answers_to(features: torch.Tensor, questions: list[str]) -> list[str]:
        assert len(features) == len(questions)
        asked.extend(questions)
        return ["it" if q == own else "yes" if q.startswith("is this") else f"a {TARGET}" for q in questions]

    evasive.answers_to = answers_to
    rates = family_tasks("vlm").forgotten(predicate.plan, tmp_path, evasive).rates
    found = {name.split(".")[1]: rate.estimate for name, rate in rates.items()}
    assert found == {"named": 0.0, "reworded": 1.0, "affirmed": 1.0}
    assert len(set(asked)) == 1 + 3 + 1  # its own, three other wordings, and whether it is one
    gates = load_suite(Path(__file__).parents[2] / "gates/suites/vlm.yaml").gates
    assert "forget.reworded.after.upper95" in {gate.column for gate in gates if gate.kind == "erasure"}


@pytest.mark.parametrize("tower", ["vision", "language"])
def test_pictures_are_seen_once_and_answers_are_those_of_looking_again_for_each(
    answering: World, answered: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tower: Tower
) -> None:
    plan = read_statement(parse(Path(answered.result["certificate"]).read_bytes())).plan
    lay_out(answering, tmp_path)
    original, edited = (VlmModel.load(answering.model) for _ in range(2))
    layer = [c.name for c in edited.candidates() if c.tower == tower][-1]
    with torch.no_grad():
        weight = edited.parameters[layer]
        weight.add_(
            0.4 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        )
    looked: list[int] = []
    look, answers_to = VlmModel.features, VlmModel.answers_to
    monkeypatch.setattr(
        VlmModel,
        "features",
        lambda self, images, *told: looked.append(len(images)) or look(self, images, *told),
    )
    found = vlm.measured(plan, tmp_path, original, edited, {tower})
    assert len(looked) == (4 if tower == "vision" else 2)  # held-out items, and pictures of other questions

    misled = vlm.measured(plan, tmp_path, original, edited, {"vision", "language"} - {tower})
    assert (misled.figures != found.figures) == (tower == "vision")  # what is said of the towers matters

    def again(model: VlmModel, pictures: torch.Tensor, questions: list[str]) -> list[str]:
        return answers_to(model, model.features(pictures), questions)

    monkeypatch.setattr(VlmModel, "answers_to", again)
    monkeypatch.setattr(
        vlm.Asked,
        "seen",
        lambda self, model: vlm.Seen(*map(torch.as_tensor, (self.pixels, self.utility.pictures))),
    )
    anew = vlm.measured(plan, tmp_path, original, edited, {tower})
    assert (anew.figures, anew.shown) == (found.figures, found.shown)
    pd.testing.assert_frame_equal(anew.outcomes, found.outcomes)
    before, after = (
        found.outcomes[found.outcomes["state"] == state]["rank"] for state in ("before", "after")
    )
    assert before.tolist() != after.tolist()  # the edit shows


def test_the_report_shows_what_both_models_said(answered: Done) -> None:
    page = Path(answered.result["report"])
    text = page.read_text()
    assert text.count("before: a ") >= 4
    assert "named, of the retained concepts dropped by at most" in text
    assert "<strong>number told</strong>: the answer to the question how many" in text
    assert "FA@" not in text
    assert "comparisons" not in json.loads(page.with_name("report.json").read_text())


def test_a_control_that_nobody_knows_is_never_named(workspace: Workspace, answered: Done) -> None:
    predicate = read_statement(parse(Path(answered.result["certificate"]).read_bytes()))
    rates = predicate.measurements.rates
    assert rates["control.named.before"].estimate == rates["control.named.after"].estimate == 0.0
    assert rates["control.named.after"].n == 2 * 2 * 8  # two names, two drawings, eight views
    assert np.isfinite(rates["forget.named.after"].upper95)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ({"name": "uce"}, "uce edits models of family clip"),
        ({"name": "slug", "towers": ["text"]}, "towers must be of vision, language"),
        ({"objective": "unet"}, "objective of a model of family vlm must be of answers, clip"),
        ({"objective": "cosine"}, "objective"),
    ],
)
def test_what_cannot_be_edited_is_refused_at_the_door(
    answering: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, object], problem: str
) -> None:
    work_in(monkeypatch, answering, tmp_path / "home")
    with pytest.raises(InputError, match=problem):
        take_in(Workspace.open(), MODEL, "object", FORGET, options={"method": method})


def test_gradients_are_of_what_the_method_says(
    answering: World, answered: Done, workspace: Workspace, tmp_path: Path
) -> None:
    plan = read_statement(parse(Path(answered.result["certificate"]).read_bytes())).plan
    lay_out(answering, tmp_path)
    model = load("vlm", answering.model)
    found = {}
    for objective in (None, "answers", "clip"):
        asked = replace(plan, method=replace(plan.method, objective=objective))
        request = family_tasks("vlm").request(asked, tmp_path, model)
        layers = [c.name for c in model.candidates() if c.tower == "vision"][-2:]
        found[objective] = request.forget_gradient(model, request.targets, layers, 64)
    assert all(torch.equal(found[None][layer], grad) for layer, grad in found["answers"].items())
    assert not any(torch.allclose(found[None][layer], grad) for layer, grad in found["clip"].items())


def test_a_hand_is_no_name(answering: World, workspace: Workspace, answered: Done, tmp_path: Path) -> None:
    plan = read_statement(parse(Path(answered.result["certificate"]).read_bytes())).plan
    with pytest.raises(SetError, match="not for its style"):
        family_tasks("vlm").request(replace(plan, axis="style"), tmp_path, load("vlm", answering.model))
