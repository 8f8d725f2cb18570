"""`slugline demo` as a newcomer runs it: killed twice on the way, watched for outbound connections."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from contracts.environment import DEFAULTS, QUIET
from intake.workspace import Workspace
from registry import versions as tag
from tasks.stores import open_registry
from tests.system.processes import REPO, slugline, until

WATCH = Path(__file__).with_name("watch")
LOCAL = {"127.0.0.1", "::1", "localhost", "unix socket", "None"}
# Any of these makes MLflow, Prefect or the hub client keep quiet by itself: the test would prove nothing.
QUIETING = {
    *QUIET,
    *DEFAULTS,
    "CI",
    "GITHUB_ACTIONS",
    "PYTEST_CURRENT_TEST",
    "PYTEST_VERSION",
    "HF_HUB_OFFLINE",
}


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user's environment with nothing switched off, in which every process notes the hosts it talks to."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in QUIETING and not name.startswith(("SLUGLINE_", "PREFECT_", "MLFLOW_", "DVC_"))
    }
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join((str(WATCH), str(REPO))),
        "HOSTS_LOG": str(tmp_path / "hosts"),
        "DO_NOT_TRACK": "1",  # what users set; MLflow wants the word "true"
    }


def hosts(environ: Mapping[str, str]) -> set[str]:
    return set(Path(environ["HOSTS_LOG"]).read_text().splitlines())


def test_the_watch_sees_grandchildren(environ: Mapping[str, str]) -> None:
    """Negative control of the demo's watch: a look-up two processes down is written down."""
    look_up = "import socket; socket.getaddrinfo('telemetry.invalid', 443)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-P', '-c', {look_up!r}])"
    subprocess.run([sys.executable, "-c", child], env=environ, check=True, stderr=subprocess.DEVNULL)
    assert hosts(environ) - LOCAL == {"telemetry.invalid"}


@pytest.mark.demo
def test_demo_killed_twice_completes_and_calls_nobody(environ: Mapping[str, str], tmp_path: Path) -> None:
    home = tmp_path / "demo"
    demo = ("demo", "--workspace", str(home), "--json")
    # While MLflow's database is made (its lock is there, it is not), and between version and alias.
    _kill(demo, environ, lambda: (home / "registry.lock").exists())
    _kill(demo, environ, lambda: _versions(home) == 2)

    done = slugline(*demo, environ=environ, timeout_s=900)

    assert done.returncode == 0, done.stderr
    runs: list[dict[str, Any]] = json.loads(done.stdout)["runs"]
    assert [run["version"] for run in runs] == ["2", "3"]
    assert runs[0]["concepts"] == 1
    assert runs[1]["concepts"] >= 10
    registry = open_registry(Workspace.open(home, environ={}))
    base, *made = registry.versions("emoji-clip")
    assert base.imported
    assert [(v.tags[tag.VERDICT], v.tags[tag.REQUEST]) for v in made] == [
        (run["verdict"], run["request"]) for run in runs
    ]
    promoted = ["1", *(run["version"] for run in runs if run["promoted"])]
    assert [run["promoted"] for run in runs] == [run["verdict"] == "passed" for run in runs]
    assert registry.aliases("emoji-clip") == dict(
        zip(("champion", "previous"), reversed(promoted), strict=False)
    )
    assert list((home / "runs").iterdir()) == []
    assert hosts(environ) <= LOCAL


def _kill(arguments: tuple[str, ...], environ: Mapping[str, str], now: Callable[[], bool]) -> None:
    """Start the command, and SIGKILL it as soon as `now` says so; its Prefect server must follow it."""
    command = [sys.executable, "-m", "cli.main", *arguments]
    process = subprocess.Popen(command, cwd=REPO, env=environ, stdout=subprocess.DEVNULL)
    try:
        until(lambda: now() or None, "the moment to kill comes", timeout_s=900)
        assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.kill()
        process.wait()
    assert children
    until(lambda: None if any(_alive(int(pid)) for pid in children) else True, "children end", timeout_s=20)


def _alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def _versions(home: Path) -> int:
    with closing(sqlite3.connect(home / "registry.db")) as store, suppress(sqlite3.OperationalError):
        return int(store.execute("SELECT count(*) FROM model_versions").fetchone()[0])
    return 0
