"""The embedded store appears whole or not at all, and only inside the workspace."""

import os
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry import embedded
from registry.connection import public_uri, tame_mlflow
from registry.embedded import ensure_database
from registry.store import Registry
from tests.registry.models import NAME, register_import

REPOSITORY = Path(__file__).parents[2]


def test_a_store_is_ready_for_use(empty_store: Path) -> None:
    # `connect` runs MLflow's own check that the schema is at its newest revision.
    assert Registry(f"sqlite:///{empty_store}", empty_store.parent).models() == ()


def test_a_crash_while_the_store_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "home" / "registry.db"

    def die_half_way(unfinished: Path) -> None:
        with sqlite3.connect(unfinished) as half:
            half.execute("CREATE TABLE alembic_version (version_num VARCHAR)")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "_write_empty_store", die_half_way)
        with pytest.raises(KeyboardInterrupt):
            ensure_database(path)
    assert not path.exists()

    # The next start does not trip over the remains.
    uri = ensure_database(path)
    assert Registry(uri, path.parent).models() == ()


def test_many_first_starts_make_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Mutation: without the lock, a later start would replace a store that is already in use.
    made: list[Path] = []

    def make(unfinished: Path) -> None:
        made.append(unfinished)
        time.sleep(0.05)  # the others arrive meanwhile
        unfinished.write_bytes(b"store")

    monkeypatch.setattr(embedded, "_write_empty_store", make)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: ensure_database(tmp_path / "registry.db"), range(8)))

    assert len(made) == 1


def test_nothing_is_written_beside_the_workspace(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Mutation: MLflow's default artifact root is ./mlruns.
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)

    registry.pull(NAME, register_import(registry, tmp_path), tmp_path / "run")

    assert list(current.iterdir()) == []


def test_using_a_store_looks_nothing_up(empty_store: Path) -> None:
    # In a process of its own: MLflow decides at its first import, and is silent under pytest anyway.
    # Mutation: taming MLflow after its first import leaves its telemetry client running.
    script = (
        "import socket, sys, pathlib\n"
        "asked = []\n"
        "socket.getaddrinfo = lambda host, *_, **__: asked.append(host) or []\n"
        "from registry.store import Registry\n"
        "Registry(None, pathlib.Path(sys.argv[1])).models()\n"
        "from mlflow.telemetry.client import get_telemetry_client\n"
        "print(asked, get_telemetry_client())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(empty_store.parent)],
        cwd=REPOSITORY,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout == "[] None\n"


def test_telemetry_pickles_and_printed_links_stay_off_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "9")

    tame_mlflow()

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    # MLflow's link to a finished run repeats the URI with its password on standard output.
    assert os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "9"  # the user's to choose


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/path?token=secret", "http://host:5000/path"),
        ("postgresql+psycopg://user:secret@host/db", "postgresql+psycopg://host/db"),
        ("sqlite:////home/registry.db", "sqlite:////home/registry.db"),
    ],
)
def test_shown_uris_hold_no_credentials(uri: str, shown: str) -> None:
    assert public_uri(uri) == shown
