"""Real local MLflow stores.

Making a store costs a second and filling it two, so both are done once per session and copied.
"""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from intake.workspace import Workspace
from registry.embedded import ensure_database
from registry.store import Registry
from tests.registry.models import NAME, certify, register_candidate, register_import


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of an empty embedded store."""
    path = tmp_path_factory.mktemp("empty") / "registry.db"
    ensure_database(path)
    return path


@pytest.fixture(scope="session")
def filled_home(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """Version 1 imported, 2 erases the first request, 3 (based on 2) the second; champion 2, previous 1."""
    folder = tmp_path_factory.mktemp("filled")
    home = Workspace.open(folder / "home", environ={}).home
    shutil.copy(empty_store, home / "registry.db")
    registry = Registry(None, home)
    register_import(registry, folder)
    for number, base in ((1, "1"), (2, "2")):
        certify(registry, folder, register_candidate(registry, folder, number, base))
    registry.set_alias(NAME, "champion", "2")
    registry.set_alias(NAME, "previous", "1")
    return home


@pytest.fixture
def workspace(tmp_path: Path, empty_store: Path) -> Workspace:
    """A workspace whose embedded store exists and is empty."""
    workspace = Workspace.open(tmp_path / "home", environ={})
    shutil.copy(empty_store, workspace.home / "registry.db")
    return workspace


@pytest.fixture
def lineage(workspace: Workspace, filled_home: Path) -> Workspace:
    """The workspace with a copy of `filled_home`'s three versions."""
    shutil.copytree(filled_home, workspace.home, dirs_exist_ok=True)
    with closing(sqlite3.connect(workspace.home / "registry.db")) as store, store:
        # MLflow stores absolute artifact locations.
        moved = (str(filled_home), str(workspace.home))
        store.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", moved)
        store.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
    return workspace


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    """The registry embedded in the workspace."""
    return Registry(None, workspace.home)
