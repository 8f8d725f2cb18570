"""One clear sentence and exit code 2 for what the caller must correct; 3 and 4 for verdicts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from intake.workspace import Workspace
from registry.store import Registry
from tasks.stores import open_registry
from tests.cli.conftest import Said, Slugline
from tests.world import FORGET, FORGET_EMPTY, FORGET_OVERLAP, MODEL, UNSEEN, Done, World, copy_tree

DEAD = "http://127.0.0.1:1"  # nobody listens on port 1 of the loopback

pytestmark = pytest.mark.usefixtures("prefect_server")


def sentence(said: Said) -> str:
    """The one line on standard error of a command that exited 2 and printed nothing."""
    assert (said.code, said.out) == (2, "")
    assert len(said.errors) == 1, said.errors
    assert said.errors[0].startswith("slugline: ")
    return said.errors[0]


@pytest.fixture
def add(slugline: Slugline) -> Callable[..., str]:
    """The id of a request that was accepted."""

    def added(forget_set: str = FORGET, *options: str) -> str:
        said = slugline("request", "add", "--model", MODEL, "--forget-set", forget_set, *options)
        assert said.code == 0, said.errors
        return said.out.strip()

    return added


def untouched(workspace: Workspace) -> bool:
    """Version 1 is all there is, and nothing of a run is left."""
    registry = open_registry(Workspace.open(workspace.home, environ={}))
    return (
        [v.version for v in registry.versions(MODEL)] == ["1"]
        and registry.aliases(MODEL) == {"champion": "1"}
        and list(workspace.runs.iterdir()) == []
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--concept", "purple tile"], "shapes knows no object 'purple tile'"),
        (["--concept", UNSEEN[0]], f"shapes knows no object '{UNSEEN[0]}'"),
        (["--concept", "cobalt ring"], f"the forget set {FORGET} holds nothing of object 'cobalt ring'"),
        (["--forget-set", FORGET_EMPTY], f"the forget set {FORGET_EMPTY} holds no item with a label"),
        (["--forget-set", "sets/nowhere"], "sets/nowhere is not tracked by DVC"),
        (["--forget-set", "/etc"], "'/etc' is not a path relative to the repository"),
        (["--model", "other"], "no rules for model 'other'; it knows shapes"),
        (["--axis", "style"], "no rules for axis 'style'"),
        (["--revision", "no-such-tag"], "no git revision 'no-such-tag'"),
        (["--option", "method.stpes=3"], "unknown field 'stpes'"),
        (["--option", "seed"], "option 'seed' is not NAME=JSON"),
    ],
)
def test_a_request_that_cannot_be_is_not_taken_in(
    workspace: Workspace, slugline: Slugline, given: list[str], said: str
) -> None:
    refused = slugline("request", "add", "--model", MODEL, "--forget-set", FORGET, *given)

    assert said in sentence(refused)
    assert slugline("request", "list").out == ""
    assert list(workspace.runs.iterdir()) == []


def test_a_forget_set_that_overlaps_the_retain_set(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add(FORGET_OVERLAP)

    assert "the forget and retain sets share 2 images" in sentence(slugline("run", request))
    assert untouched(workspace)
    shown = json.loads(slugline("request", "show", request).out)
    assert (shown["state"], shown["error"]) == ("error", "SetError")


def test_a_gate_file_with_an_unknown_metric(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add(FORGET, "--option", "gates=gates/unknown.yaml")

    said = sentence(slugline("run", request))

    assert "'forget.fa9.after.upper95'" in said
    assert "nearest known one is 'forget.fa" in said
    assert untouched(workspace)


def test_a_dead_registry(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    request = add()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)

    assert sentence(slugline("run", request)) == f"slugline: the registry {DEAD} does not answer"
    assert sentence(slugline("models", "list")) == f"slugline: the registry {DEAD} does not answer"
    assert untouched(workspace)


def test_weights_that_are_not_the_registered_ones(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add()
    stored = next((workspace.home / "artifacts").rglob("weights.safetensors"))
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)

    assert "weights.safetensors" in sentence(slugline("run", request))

    # A manifest that was changed with them has another digest than the version's tag.
    from evidence.manifest import write_manifest

    (stored.parent / "MANIFEST.json").unlink()
    write_manifest(stored.parent)
    said = sentence(slugline("run", request))
    assert "manifest_sha256 is" in said
    assert "registered was" in said
    assert untouched(workspace)


def test_weights_cut_short_cannot_be_imported(in_world: World, slugline: Slugline, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(in_world.model, folder)
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    said = sentence(slugline("models", "import", "--name", MODEL, "--folder", str(folder)))

    assert "weights.safetensors is missing or is not a complete safetensors file" in said
    assert slugline("models", "list").out == ""


@pytest.fixture
def lonely(workspace: Workspace, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The world's repository with an empty DVC cache, so that only its remote has the bytes."""
    root = tmp_path / "lonely"
    copy_tree(world.root, root)
    shutil.rmtree(root / ".dvc" / "cache")
    monkeypatch.setenv("SLUGLINE_REPO", str(root))
    return root


def test_a_dvc_remote_that_is_gone(
    lonely: Path, workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add()
    (lonely / "store").rename(lonely / "elsewhere")

    for command in (("run", request), ("request", "add", "--model", MODEL, "--forget-set", FORGET)):
        assert "the DVC remote does not give" in sentence(slugline(*command))
    assert untouched(workspace)

    (lonely / "elsewhere").rename(lonely / "store")
    assert json.loads(slugline("request", "show", request).out)["error"] == "StoreUnreachable"


@pytest.mark.parametrize("request_id", ["req-0000000000000000", "crimson tile"])
def test_a_request_that_is_not_there(workspace: Workspace, slugline: Slugline, request_id: str) -> None:
    for command in ("run", "request show", "request cancel"):
        said = sentence(slugline(*command.split(), request_id))
        assert ("there is no request" in said) == request_id.startswith("req-")
        assert "crimson" not in said  # it may be somebody's name


def test_a_request_that_is_decided_is_shown_again(
    done_workspace: Workspace, slugline: Slugline, done: Done
) -> None:
    shown = slugline("run", done.request_id, "--json")
    assert (shown.code, json.loads(shown.out)["certificate"]) == (0, done.result["certificate"])
    assert f"{done.request_id} is passed and cannot be cancelled" in sentence(
        slugline("request", "cancel", done.request_id)
    )


def test_the_real_command_prints_no_traceback(workspace: Workspace, add: Callable[..., str]) -> None:
    """In a process of its own: Prefect logs failed runs with their tracebacks, past pytest's capture."""
    from prefect.settings import PREFECT_API_URL

    request = add()
    silent = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_LOGGING")}

    said = subprocess.run(
        [sys.executable, "-m", "cli.main", "--quiet", "run", request],
        cwd=Path(__file__).parents[2],
        env={**silent, "MLFLOW_TRACKING_URI": DEAD, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
    )

    assert said.stderr == f"slugline: the registry {DEAD} does not answer\n"
    assert (said.returncode, said.stdout) == (2, "")


def test_a_file_system_that_refuses_is_one_sentence(
    workspace: Workspace, slugline: Slugline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "/srv/slugline/locks")

    monkeypatch.setattr("intake.workspace.Workspace.open", refused)
    assert sentence(slugline("models", "list")) == "slugline: Permission denied: /srv/slugline/locks"


def test_a_sweep_of_a_model_that_is_not_there(workspace: Workspace, slugline: Slugline) -> None:
    assert "the registry has no model 'nosuch'" in sentence(slugline("sweep", "--model", "nosuch"))


def test_a_failed_gate_exits_3_and_leaves_the_champion(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add(FORGET, "--option", "gates=gates/strict.yaml")

    said = slugline("run", request, "--json")

    result = json.loads(said.out)
    assert (said.code, result["verdict"], result["promoted"]) == (3, "failed", False)
    registry: Registry = open_registry(workspace)
    assert registry.aliases(MODEL) == {"champion": "1"}
    # Registered, certified, and not promotable.
    assert registry.describe(MODEL, result["version"]).tags["verdict"] == "failed"
    assert slugline("verify", result["certificate"], "--model", str(_pulled(registry, workspace))).code == 3
    said = slugline("models", "promote", MODEL, result["version"], "--expect-champion", "1")
    assert "says 'failed', not 'passed'" in sentence(said)


def _pulled(registry: Registry, workspace: Workspace) -> Path:
    return Path(registry.pull(MODEL, "2", workspace.home.parent / "pulled").folder)


def test_insufficient_evidence_exits_4(
    workspace: Workspace, slugline: Slugline, add: Callable[..., str]
) -> None:
    request = add(FORGET, "--option", "gates=gates/greedy.yaml")

    said = slugline("sweep", "--model", MODEL)

    assert said.code == 4
    assert f"{request}: insufficient evidence: version 2 registered, champion unchanged" in said.out
    assert json.loads(slugline("request", "show", request).out)["state"] == "insufficient"
    assert open_registry(workspace).aliases(MODEL) == {"champion": "1"}
