"""What tests of tasks, flows and the command line share: the small world, and workspaces in it.

Everything slow is made once per session and copied.  Heavy packages are imported in the fixtures: this
file is read for every room.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from contracts import environment
from intake.workspace import Workspace

if TYPE_CHECKING:
    from tests.world import Done, World


def pytest_configure() -> None:
    # Some of these are read once, when Prefect or MLflow is first imported.
    for name, value in {**environment.DEFAULTS, **environment.QUIET}.items():
        os.environ.setdefault(name, value)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """The repository and the model of `tests.world`; do not change either."""
    from tests.repository import dvc_site
    from tests.world import World, build_repository, train_model

    folder = tmp_path_factory.mktemp("world")
    with dvc_site(folder):
        build_repository(folder / "repo")
        train_model(folder / "model")
    return World(folder / "repo", folder / "model")


@pytest.fixture(scope="session")
def fresh_home(world: "World", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with the world's model as version 1 and champion; copy it."""
    from tasks.models import import_model
    from tests.world import MODEL

    home = tmp_path_factory.mktemp("fresh") / "home"
    import_model(Workspace.open(home, environ={}), world.model, MODEL)
    return home


@pytest.fixture(scope="session")
def done(
    world: "World", fresh_home: Path, prefect_server: None, tmp_path_factory: pytest.TempPathFactory
) -> "Done":
    """One request carried through, undisturbed; copy its home."""
    from flows.unlearn import unlearn
    from tasks.requests import take_in
    from tests.world import FORGET, MODEL, Done, copy_home, work_in

    home = tmp_path_factory.mktemp("done") / "home"
    copy_home(fresh_home, home)
    with pytest.MonkeyPatch.context() as patch:
        work_in(patch, world, home)
        request = take_in(Workspace.open(), MODEL, "object", FORGET, idempotency_key="undisturbed")
        return Done(home, request.id, unlearn(request.id))


@pytest.fixture
def in_world(world: "World", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "World":
    """This process set up to work in the world, with `tmp_path / "home"` as its workspace."""
    from tests.world import work_in

    work_in(monkeypatch, world, tmp_path / "home")
    return world


@pytest.fixture
def workspace(in_world: "World", fresh_home: Path) -> Workspace:
    """A workspace of this test's own: the world's model is champion, the ledger is empty."""
    from tests.world import copy_home

    copy_home(fresh_home, Path(os.environ["SLUGLINE_HOME"]))
    return Workspace.open()


@pytest.fixture
def done_workspace(in_world: "World", done: "Done") -> Workspace:
    """A workspace of this test's own in which the request of `done` has passed: champion 2, previous 1."""
    from tests.world import copy_home

    copy_home(done.home, Path(os.environ["SLUGLINE_HOME"]))
    return Workspace.open()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server with a database of its own for the session; flows send no heartbeats."""
    from prefect.settings import (
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        PREFECT_HOME,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect")
    own = {
        PREFECT_HOME: home,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH: home / "results",
        # The thread that sends heartbeats costs a second per flow run when it is joined.
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    with temporary_settings(updates=own), prefect_test_harness(server_startup_timeout=120):
        yield
