"""A request to a model of another family, from door to door: nothing on the way knows the family."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from contracts.errors import InputError, ModelError
from contracts.values import RunSeconds
from data.layout import concept_id
from evidence.schema import read_statement
from evidence.strict_json import parse
from evidence.verify import verify
from flows.unlearn import unlearn
from intake.workspace import Workspace
from tasks.families import family_tasks, load
from tasks.families.restoration import Images, judge
from tasks.models import import_model
from tasks.requests import take_in
from tasks.stores import open_registry
from tests.repository import dvc_site
from tests.restoration_world import FORGET, MODEL, make
from tests.world import Done, World, carried_out, work_in

HAZE, RAIN = concept_id("haze"), concept_id("rain")


@pytest.fixture(scope="module")
def restoring(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("restoring")
    with dvc_site(folder):
        return make(folder)


@pytest.fixture(scope="module")
def restored(restoring: World, tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Done:
    return carried_out(restoring, tmp_path_factory.mktemp("restored") / "home", MODEL, FORGET, "haze")


@pytest.fixture
def workspace(restoring: World, restored: Done, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    work_in(monkeypatch, restoring, restored.home)
    return Workspace.open()


def test_the_result_tells_the_familys_own_measures(restored: Done) -> None:
    result = restored.result
    assert set(result["forget"]) == {"n", "restored_before", "restored_after", "restored_after_upper95"}
    assert set(result["retain"]) == {"n", "restored_before", "restored_after", "drop_upper95"}
    assert result["edited"][0]["tower"] == "net"
    assert set(result["seconds"]) == set(RunSeconds.__dataclass_fields__)
    levels = result["levels"]
    wanted = {"forget.psnr", "retain.psnr", "cross.psnr", "neighbours.worst.psnr", f"neighbour.{RAIN}.ssim"}
    assert wanted <= set(levels)


def test_the_certificate_is_verified_with_its_levels(
    workspace: Workspace, restored: Done, tmp_path: Path
) -> None:
    registry = open_registry(workspace)
    handle = registry.pull(MODEL, restored.result["version"], tmp_path)
    certificate = Path(restored.result["certificate"])
    assert handle.family == "restoration"
    report = verify(certificate, model_folder=Path(handle.folder))
    assert report.ok
    predicate = read_statement(parse(certificate.read_bytes()))
    assert predicate.measurements.levels["retain.psnr"].n == 6 * 2 * 4
    # The verifier derives what it can of the levels, too.
    forged = certificate.read_text().replace('"loss":', '"loss":1')
    (tmp_path / "forged.json").write_text(forged)
    assert not verify(tmp_path / "forged.json", model_folder=Path(handle.folder)).ok


def test_only_the_edited_tensor_differs(workspace: Workspace, restored: Done, tmp_path: Path) -> None:
    registry = open_registry(workspace)
    before, after = (
        load_file(Path(registry.pull(MODEL, version, tmp_path / version).folder) / "weights.safetensors")
        for version in ("1", restored.result["version"])
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {edit["layer"] for edit in restored.result["edited"]}


def test_the_figures_are_those_of_the_models_on_the_holdout(
    restoring: World, workspace: Workspace, restored: Done, tmp_path: Path
) -> None:
    registry, told = open_registry(workspace), restored.result["levels"]["forget.psnr"]
    held = Images.read(restoring.root / "sets/restoration-holdout")
    held = held.where(held.rows["object"] == HAZE)
    for version, state in (("1", "before"), (restored.result["version"], "after")):
        folder = Path(registry.pull(MODEL, version, tmp_path / version).folder)
        found = judge(load("restoration", folder), held)
        assert told[state] == pytest.approx(float(np.mean(found.psnr)))
        assert restored.result["forget"][f"restored_{state}"] == float(np.mean(found.gain >= 1))


def test_the_report_shows_pictures_before_and_after(restored: Done) -> None:
    page = Path(restored.result["report"])
    text = page.read_text()
    assert text.count("data:image/png;base64,") >= 16  # four pictures each, of forgotten and of kept
    for words in ("as it came", "PSNR of the retained concepts", "Gain, dB", " dB"):
        assert words in text
    assert "FA@" not in text.partition("How to repeat the run")[0]
    told = json.loads(page.with_name("report.json").read_text())
    assert told["measurements"]["levels"]["forget.psnr"]["n"] == 12
    assert "comparisons" not in told


def test_a_recheck_would_find_what_the_run_found(
    restoring: World, workspace: Workspace, restored: Done, tmp_path: Path
) -> None:
    predicate = read_statement(parse(Path(restored.result["certificate"]).read_bytes()))
    (tmp_path / "holdout").symlink_to(restoring.root / "sets/restoration-holdout")
    folder = Path(open_registry(workspace).pull(MODEL, restored.result["version"], tmp_path / "model").folder)
    model = load("restoration", folder)
    found = family_tasks("restoration").forgotten(predicate.plan, tmp_path, model).rates
    assert set(found) == {"forget.restored.after", "forget.harmed.after"}
    assert all(predicate.measurements.rates[name] == rate for name, rate in found.items())


def test_a_model_of_another_family_than_the_rules_say_is_refused(
    restoring: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(monkeypatch, restoring, tmp_path / "home")
    import_model(Workspace.open(), restoring.model, "mistaken")
    request = take_in(Workspace.open(), "mistaken", "object", FORGET)
    with pytest.raises(InputError, match=r"is of family restoration, slugline\.yaml says clip"):
        unlearn(request.id)


def test_a_method_of_another_family_is_refused_at_the_door(
    restoring: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_in(monkeypatch, restoring, tmp_path / "home")
    with pytest.raises(InputError, match="uce edits models of family clip, this one is of restoration"):
        take_in(Workspace.open(), MODEL, "object", FORGET, options={"method": {"name": "uce"}})


def test_a_folder_of_an_unknown_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"schema": 1, "family": "audio"}')
    with pytest.raises(ModelError, match="unknown model family 'audio'; there are clip, restoration, vlm"):
        import_model(Workspace.open(tmp_path / "home", environ={}), tmp_path / "model", "audio")
