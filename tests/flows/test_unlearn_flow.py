"""One request from door to door, and what stands in the stores afterwards."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from contracts.canonical import file_sha256
from contracts.values import Plan, RunSeconds
from data.layout import concept_id
from evidence.schema import read_statement
from evidence.strict_json import parse
from evidence.verify import verify
from flows.unlearn import unlearn
from intake.claims import RequestBusy
from intake.workspace import Workspace
from registry.store import Registry
from tasks.requests import take_in
from tasks.stores import open_ledger, open_registry
from tests.world import FORGET, MODEL, TARGET, Done, World


@pytest.fixture
def registry(done_workspace: Workspace) -> Registry:
    return open_registry(done_workspace)


def test_a_request_that_passes_moves_the_champion(registry: Registry, done: Done) -> None:
    assert (done.result["verdict"], done.result["promoted"]) == ("passed", True)
    assert (done.result["base_version"], done.result["version"]) == ("1", "2")
    assert registry.aliases(MODEL) == {"champion": "2", "previous": "1"}


def test_the_result_has_the_shape_that_the_demo_prints(done: Done) -> None:
    result = done.result

    assert set(result) == {
        *("request", "concepts", "verdict", "promoted", "base_version", "version", "edited"),
        *("forget", "retain", "certificate", "report", "seconds", "levels", "missed"),
    }
    assert result["missed"] == []
    assert set(result["edited"][0]) == {"layer", "tower", "step_size"}
    assert set(result["forget"]) == {"n", "fa1_before", "fa1_after", "fa1_after_upper95"}
    assert set(result["retain"]) == {"n", "ta1_before", "ta1_after", "drop_upper95"}
    assert set(result["seconds"]) == set(RunSeconds.__dataclass_fields__)
    assert result["forget"]["fa1_after_upper95"] > result["forget"]["fa1_after"]


def test_the_ledger_points_at_the_evidence(done_workspace: Workspace, done: Done) -> None:
    request = open_ledger(done_workspace).get(done.request_id)

    assert (request.state, request.evidence.version, request.attempts) == ("passed", "2", 1)
    assert file_sha256(Path(request.evidence.certificate or "")) == request.evidence.certificate_sha256
    assert Path(request.evidence.report or "").is_file()
    assert request.evidence.verdict is not None
    assert request.evidence.verdict["decision"] == "passed"


def test_nothing_is_left_of_the_run_folder(done_workspace: Workspace) -> None:
    assert list(done_workspace.runs.iterdir()) == []


def test_the_champion_is_certified_for_exactly_its_weights(
    registry: Registry, done: Done, tmp_path: Path
) -> None:
    """Invariant 6, with the bytes and the digest that the registry gives out."""
    handle = registry.pull(MODEL, "champion", tmp_path / "pulled")
    certificate = registry.pull_certificate(MODEL, handle.version, tmp_path / "pulled")
    tagged = registry.describe(MODEL, handle.version).tags["certificate_sha256"]

    report = verify(certificate, model_folder=Path(handle.folder), expected_sha256=tagged)

    assert report.ok
    assert report.decision == "passed"
    assert report.weights_sha256 == file_sha256(Path(handle.folder) / "weights.safetensors")
    assert certificate.read_bytes() == Path(done.result["certificate"]).read_bytes()


def test_only_the_edited_tensors_differ(registry: Registry, done: Done, tmp_path: Path) -> None:
    """Invariant 2."""
    before, after = (
        load_file(Path(registry.pull(MODEL, version, tmp_path / version).folder) / "weights.safetensors")
        for version in ("1", "2")
    )

    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {edit["layer"] for edit in done.result["edited"]}
    assert len(changed) == 1


def test_the_same_request_runs_once(done_workspace: Workspace, registry: Registry, done: Done) -> None:
    again = take_in(done_workspace, MODEL, "object", FORGET, [TARGET], idempotency_key="undisturbed")

    assert again.id == done.request_id
    with pytest.raises(RequestBusy, match="is passed and will not run again"):
        unlearn(again.id)
    assert len(registry.versions(MODEL)) == 2
    assert open_ledger(done_workspace).get(again.id).state == "passed"


def test_the_certificate_holds_the_plan_that_the_request_asked_for(done: Done, world: World) -> None:
    predicate = read_statement(parse(Path(done.result["certificate"]).read_bytes()))

    plan: Plan = predicate.plan
    assert (plan.request_id, plan.targets) == (done.request_id, (concept_id(TARGET),))
    assert (plan.base_version, plan.set("forget").path) == ("1", FORGET)
