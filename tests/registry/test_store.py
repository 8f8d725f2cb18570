"""A model enters the registry once and leaves it byte for byte, or not at all."""

import shutil
import socket
import stat
from pathlib import Path

import pytest

from contracts.errors import DigestMismatch, EvidenceError, InputError, ModelError, StoreUnreachable
from intake.workspace import Workspace
from registry.connection import store_errors
from registry.store import Registry
from tests.registry.models import NAME, model_folder, plan, register_candidate, register_import, request_id


def _artifacts(registry: Registry, version: str) -> Path:
    run = registry.client.get_run(registry.describe(NAME, version).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_a_version_is_a_candidate_with_all_its_tags(registry: Registry, tmp_path: Path) -> None:
    register_import(registry, tmp_path)
    picture = tmp_path / "local name.png"
    picture.write_bytes(b"png")

    version = register_candidate(
        registry,
        tmp_path,
        1,
        run_tags={"axis": "object"},
        metrics={"fa1.after": 0.0},
        artifacts={"profile/profile.png": picture},
    )

    info = registry.describe(NAME, version)
    assert (info.version, info.aliases) == ("2", ())
    assert {
        "family",
        "base_version",
        "verdict",
        "request_id",
        "plan_sha256",
        "weights_sha256",
        "manifest_sha256",
    } == set(info.tags)
    run = registry.client.get_run(info.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"fa1.after": 0.0}
    assert run.data.tags["axis"] == "object"
    # Nothing of this machine or user is recorded beside the artifact location.
    assert str(tmp_path) not in str(run.data.tags)
    assert (_artifacts(registry, version) / "profile" / "profile.png").read_bytes() == b"png"


def test_registering_twice_gives_one_version_and_one_run(registry: Registry, tmp_path: Path) -> None:
    first = register_import(registry, tmp_path)
    shutil.rmtree(tmp_path / "base")

    assert register_import(registry, tmp_path) == first
    assert len(registry.versions(NAME)) == 1
    assert len(_runs(registry)) == 1


def test_another_plan_or_request_is_another_version(registry: Registry, tmp_path: Path) -> None:
    register_import(registry, tmp_path)
    versions = [register_candidate(registry, tmp_path, n) for n in (1, 2)]

    assert versions == ["2", "3"]
    found = registry.find_version(NAME, request_id(2), plan(registry, 2).sha256)
    assert found is not None
    assert found.version == "3"
    assert registry.find_version(NAME, request_id(2), "b" * 64) is None
    assert registry.find_version("nobody", request_id(2), plan(registry, 2).sha256) is None


def test_other_weights_for_the_same_plan_are_refused(registry: Registry, tmp_path: Path) -> None:
    register_import(registry, tmp_path)
    other = model_folder(tmp_path / "other", "not deterministic")

    with pytest.raises(DigestMismatch, match="other weights"):
        registry.register_model(
            other,
            NAME,
            request_id="import",
            plan_sha256="0" * 64,
            tags={"family": "clip"},
        )


def test_a_run_left_by_a_crash_is_filled_again(
    registry: Registry, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry.client, "create_model_version", crash)
    with pytest.raises(KeyboardInterrupt):
        register_import(registry, tmp_path)
    assert len(_runs(registry)) == 1
    shutil.rmtree(tmp_path / "base")

    fresh = Registry(None, workspace.home)
    assert register_import(fresh, tmp_path) == "1"
    assert len(_runs(fresh)) == 1


def test_a_folder_that_does_not_match_its_manifest_is_not_registered(
    registry: Registry, tmp_path: Path
) -> None:
    folder = model_folder(tmp_path / "base", "weights")
    (folder / "weights.safetensors").write_text("changed")

    with pytest.raises(DigestMismatch):
        registry.register_model(
            folder, NAME, request_id="import", plan_sha256="0" * 64, tags={"family": "clip"}
        )
    assert registry.models() == ()
    assert _runs(registry) == []


@pytest.mark.parametrize(
    ("name", "tags", "message"),
    [
        ("clip'; --", {"family": "clip"}, "model name"),
        ("a/b", {"family": "clip"}, "model name"),
        (NAME, {}, "family"),
        (NAME, {"family": "clip", "note": "Jane Doe, jane@example.org"}, "tag 'note'"),
    ],
)
def test_bad_names_and_tags_are_refused(
    registry: Registry, tmp_path: Path, name: str, tags: dict[str, str], message: str
) -> None:
    folder = model_folder(tmp_path / "base", "weights")

    with pytest.raises(InputError, match=message) as caught:
        registry.register_model(folder, name, request_id="import", plan_sha256="0" * 64, tags=tags)
    assert "jane" not in str(caught.value)


def test_a_missing_artifact_is_refused_and_nothing_is_registered(registry: Registry, tmp_path: Path) -> None:
    register_import(registry, tmp_path)

    with pytest.raises(InputError, match=r"plot\.png"):
        register_candidate(registry, tmp_path, 1, artifacts={"plot.png": tmp_path / "absent"})
    assert [v.version for v in registry.versions(NAME)] == ["1"]


def test_pull_copies_by_alias_and_by_version(registry: Registry, tmp_path: Path) -> None:
    version = register_import(registry, tmp_path)
    registry.set_alias(NAME, "champion", version)

    handle = registry.pull(NAME, "champion", tmp_path / "run")

    folder = Path(handle.folder)
    assert handle == registry.pull(NAME, version, tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in (tmp_path / "base").iterdir())
    assert (handle.name, handle.version, handle.family) == (NAME, "1", "clip")
    assert handle.weights_sha256 == registry.describe(NAME, version).tags["weights_sha256"]
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    # Mutation: without dst_path MLflow hands out the live folder of the store.
    (folder / "weights.safetensors").write_text("scribble")
    assert registry.pull(NAME, version, tmp_path / "again").weights_sha256 == handle.weights_sha256


def test_a_pull_replaces_what_an_interrupted_pull_left(registry: Registry, tmp_path: Path) -> None:
    version = register_import(registry, tmp_path)
    left = tmp_path / "run" / f"{NAME}-{version}" / "model"
    left.mkdir(parents=True)
    (left / "half.part").write_text("x")

    folder = Path(registry.pull(NAME, version, tmp_path / "run").folder)

    assert not (folder / "half.part").exists()


def test_corrupted_weights_are_noticed(registry: Registry, tmp_path: Path) -> None:
    version = register_import(registry, tmp_path)
    (_artifacts(registry, version) / "model" / "weights.safetensors").write_text("bit rot")

    with pytest.raises(DigestMismatch):
        registry.pull(NAME, version, tmp_path / "run")


def test_weights_swapped_together_with_their_manifest_are_noticed(registry: Registry, tmp_path: Path) -> None:
    # Mutation: checking the folder against its own manifest only would accept this.
    version = register_import(registry, tmp_path)
    stored = _artifacts(registry, version) / "model"
    shutil.rmtree(stored)
    model_folder(stored, "other weights")

    with pytest.raises(DigestMismatch, match="registered was"):
        registry.pull(NAME, version, tmp_path / "run")


def test_deleted_files_are_named(registry: Registry, tmp_path: Path) -> None:
    version = register_import(registry, tmp_path)
    shutil.rmtree(_artifacts(registry, version))

    with pytest.raises(ModelError, match="version 1 of clip has no model"):
        registry.pull(NAME, version, tmp_path / "run")


def test_a_version_made_by_others_is_refused(registry: Registry, tmp_path: Path) -> None:
    run_id = registry.describe(NAME, register_import(registry, tmp_path)).run_id
    registry.client.create_model_version(NAME, f"runs:/{run_id}/model", run_id)

    with pytest.raises(ModelError, match="not registered by slugline"):
        registry.pull(NAME, "2", tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "which", "message"),
    [
        ("klip", "1", "no model 'klip'; known models: clip"),
        (NAME, "champoin", "no alias 'champoin'; known aliases: champion"),
        (NAME, "7", "no version 7; known versions: 1"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(
    registry: Registry, tmp_path: Path, name: str, which: str, message: str
) -> None:
    registry.set_alias(NAME, "champion", register_import(registry, tmp_path))

    with pytest.raises(InputError, match=message):
        registry.pull(name, which, tmp_path / "run")


def test_a_certificate_is_attached_once(registry: Registry, tmp_path: Path) -> None:
    version = register_import(registry, tmp_path)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text("{}")
    second.write_text('{"verdict": "passed"}')

    sha256 = registry.attach_certificate(NAME, version, first)

    assert registry.attach_certificate(NAME, version, first) == sha256
    assert registry.describe(NAME, version).tags["certificate_sha256"] == sha256
    with pytest.raises(EvidenceError, match="already"):
        registry.attach_certificate(NAME, version, second)
    assert registry.pull_certificate(NAME, version, tmp_path / "run").read_text() == "{}"


def test_a_missing_certificate_is_named(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="version 1 of clip carries no certificate"):
        registry.pull_certificate(NAME, register_import(registry, tmp_path), tmp_path / "run")


def test_listing_shows_aliases(registry: Registry, tmp_path: Path) -> None:
    register_import(registry, tmp_path)
    register_candidate(registry, tmp_path, 1)
    registry.set_alias(NAME, "champion", "2")

    assert registry.models() == (NAME,)
    assert registry.aliases(NAME) == {"champion": "2"}
    assert [(v.version, v.aliases) for v in registry.versions(NAME)] == [("1", ()), ("2", ("champion",))]
    registry.set_alias(NAME, "champion", None)
    assert registry.aliases(NAME) == {}


def test_a_dead_server_is_named_without_its_credentials(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        registry = Registry(f"http://user:secret@127.0.0.1:{port}", tmp_path)

        with pytest.raises(StoreUnreachable, match=f"127.0.0.1:{port} does not answer") as caught:
            registry.models()
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_mlflow_s_own_messages_are_not_passed_on() -> None:
    from mlflow.exceptions import MlflowException

    uri = "http://user:secret@registry:5000/path?token=secret"
    with (
        pytest.raises(StoreUnreachable, match="http://registry:5000/path failed: INTERNAL_ERROR") as caught,
        store_errors(uri),
    ):
        raise MlflowException(f"API request to {uri} failed")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "databricks", "ftp://host/x"])
def test_other_stores_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither"):
        Registry(uri, tmp_path).models()


def _runs(registry: Registry) -> list[object]:
    experiment = registry.client.get_experiment_by_name("slugline")
    return [] if experiment is None else list(registry.client.search_runs([experiment.experiment_id]))
