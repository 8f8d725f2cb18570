"""What a command costs before it does anything, and what a private Prefect server leaves behind."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import yaml

from contracts.environment import QUIET
from tests.system.processes import REPO, slugline, until

HEAVY = {
    "alembic", "dvc", "great_expectations", "matplotlib", "mlflow", "numpy", "open_clip", "pandas", "prefect",
    "scipy", "sqlalchemy", "torch", "transformers",
}  # fmt: skip
OWNER = """
import os, time
from pathlib import Path
from contracts import environment
environment.prepare(Path(os.environ["SLUGLINE_HOME"]))
from cli.private_server import prefect_api
with prefect_api() as api:
    from prefect import flow
    api.wait()
    flow(lambda: 1, name="trivial")()
    print(api.url, flush=True)
    time.sleep(600)
"""


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from cli.main import slugline; slugline(['--help'], standalone_mode=False); "
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPO, check=True, capture_output=True, text=True
    )
    assert "demo" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_flows_on_workers_keep_as_quiet_as_the_command_line() -> None:
    """A worker's flow process reads its settings before any code of ours runs."""
    deployments = yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]
    assert [d["name"] for d in deployments] == ["on-request", "nightly", "promote", "rollback"]
    for deployment in deployments:
        assert QUIET.items() <= deployment["work_pool"]["job_variables"]["env"].items()


def test_the_first_command_in_a_new_workspace_says_nothing_but_what_went_wrong(tmp_path: Path) -> None:
    """Prefect warns where its folder's parent is not there yet; an empty model folder stops it early."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ["SLUGLINE_HOME"] = str(tmp_path / "home")
    (tmp_path / "model").mkdir()
    given = ("models", "import", "--name", "x", "--folder", str(tmp_path / "model"))
    done = slugline(*given, environ=environ)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_private_server_dies_with_its_owner_and_keeps_no_run(tmp_path: Path) -> None:
    """Prefect's own temporary server lives on after SIGKILL.  The second one here begins with a copy."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ["SLUGLINE_HOME"] = str(tmp_path / "home")
    refused = slugline("run", "req-0123456789abcdef", environ=environ)
    assert (refused.returncode, refused.stderr) == (2, "slugline: there is no request req-0123456789abcdef\n")

    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=REPO, env=environ, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert httpx.get(f"{url}/health", timeout=30).json() is True
    finally:
        process.kill()
        process.wait()

    until(lambda: _gone(url), "the server ends", timeout_s=20)
    (empty,) = (tmp_path / "home" / "prefect").iterdir()
    with closing(sqlite3.connect(empty)) as database:
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)


def _gone(url: str) -> bool | None:
    try:
        httpx.get(f"{url}/health", timeout=5)
    except httpx.TransportError:
        return True
    return None
