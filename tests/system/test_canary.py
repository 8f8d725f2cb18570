"""The deployment as a whole: server, `make deploy`, worker, event, run, alias.

Nothing cheaper notices that a new SQLAlchemy makes Prefect schedule no cron runs, or that a new FastAPI
refuses half a deployment, while every command says "success".
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from contracts.environment import QUIET
from intake.workspace import Workspace
from tests.system.processes import BIN, REPO, running, slugline, until
from tests.world import FORGET_PERSONAL, MODEL, SUBJECT, TARGET, World

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

pytestmark = pytest.mark.canary


@dataclass(frozen=True)
class Server:
    """A running Prefect server and the folder of its database."""

    variables: Mapping[str, str]
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        """This process's environment, with the server named."""
        return {**os.environ, **self.variables}

    def get(self, path: str) -> Any:
        answer = httpx.get(self.variables["PREFECT_API_URL"] + path, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def flow_runs(self, deployment: str, *states: str) -> list["FlowRun"]:
        """Runs of a deployment, in some states if asked for."""
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

        chosen = {"state": {"type": {"any_": list(states)}}} if states else {}
        with SyncPrefectClient(self.variables["PREFECT_API_URL"]) as client:
            return client.read_flow_runs(
                deployment_filter=DeploymentFilter.model_validate({"name": {"any_": [deployment]}}),
                flow_run_filter=FlowRunFilter.model_validate(chosen),
            )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with `make deploy` done to it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {
        **QUIET,
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    started = Server(variables, folder)
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, started.environ, folder / "server.log"):

        def healthy() -> bool | None:
            try:
                return bool(started.get("/health")) or None
            except httpx.HTTPError:
                return None

        until(healthy, "the Prefect server answers")
        # -o: the environment is the one that this test runs in.
        deploy = ["make", "-o", "install", f"BIN={BIN}", "deploy"]
        done = subprocess.run(
            deploy, cwd=REPO, env=started.environ, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield started


def test_nightly_sweeps_are_scheduled(server: Server) -> None:
    """Fails with SQLAlchemy 2.1: the scheduler's loop dies, and only the server's log says so."""
    runs = until(lambda: server.flow_runs("nightly", "SCHEDULED") or None, "cron runs appear")
    assert all(run.parameters == {"model": "emoji-clip"} for run in runs)
    times = {run.expected_start_time for run in runs}
    assert len(times) == len(runs) > 1
    assert {time.hour for time in times if time} == {2}


def test_one_run_at_a_time(server: Server) -> None:
    queue = server.get("/work_pools/slugline/queues/gpu")
    assert queue["concurrency_limit"] == 1


def test_an_event_becomes_a_promoted_version(
    server: Server, world: World, workspace: Workspace, tmp_path: Path
) -> None:
    """The request is personal: nothing of it may reach the server but its opaque id."""
    from tasks.stores import open_ledger, open_registry

    worker = [str(BIN / "prefect"), "worker", "start", "--pool", "slugline"]
    with running(worker, server.environ, tmp_path / "worker.log"):
        ask = ("request", "add", "--model", MODEL, "--forget-set", FORGET_PERSONAL, "--emit", "--json")
        added = slugline(*ask, environ=server.environ)
        assert added.returncode == 0, added.stderr
        request_id = json.loads(added.stdout)["id"]

        def ended() -> "FlowRun | None":
            return next(iter(server.flow_runs("on-request", "COMPLETED", "FAILED", "CRASHED")), None)

        run = until(ended, "the run ends", timeout_s=240)
        log = (tmp_path / "worker.log").read_text()
    assert run.state_name == "Completed", log
    assert run.parameters == {"request_id": request_id}
    decided = open_ledger(workspace).get(request_id)
    assert (decided.state, decided.evidence.version) == ("passed", "2")
    assert open_registry(workspace).aliases(MODEL) == {"champion": "2", "previous": "1"}
    stored = b"".join(path.read_bytes() for path in server.home.glob("prefect.db*"))
    assert request_id.encode() in stored
    for personal in (SUBJECT, TARGET, *world.captions(FORGET_PERSONAL)):
        assert personal.encode() not in stored
    assert list(workspace.runs.iterdir()) == []
