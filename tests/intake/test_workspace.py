"""Run folders are private and leave no trace, also after SIGKILL."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import InputError
from intake.workspace import Workspace

REPOSITORY = Path(__file__).parents[2]


def test_everything_is_inside_the_home_by_default(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "home", environ={})

    assert workspace.ledger_url == f"sqlite:///{tmp_path / 'home' / 'ledger.db'}"
    assert workspace.tracking_uri is None
    assert stat.S_IMODE(workspace.home.stat().st_mode) == 0o700


def test_the_environment_names_home_and_stores(tmp_path: Path) -> None:
    variables = {
        "SLUGLINE_HOME": str(tmp_path / "elsewhere"),
        "SLUGLINE_LEDGER_URL": "postgresql://db/ledger",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }

    workspace = Workspace.open(environ=variables)

    assert workspace.home == tmp_path / "elsewhere"
    assert workspace.ledger_url == "postgresql://db/ledger"
    assert workspace.tracking_uri == "http://mlflow:5000"


def test_a_file_in_the_place_of_the_home_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")

    with pytest.raises(InputError, match="cannot be created"):
        Workspace.open(tmp_path / "home", environ={})


@pytest.mark.parametrize(
    ("before", "after"), [(0o777, 0o700), (0o707, 0o700), (0o775, 0o775), (0o700, 0o700)]
)
def test_a_home_that_everybody_may_write_to_is_closed(tmp_path: Path, before: int, after: int) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(before)

    workspace = Workspace.open(home, environ={})

    assert stat.S_IMODE(home.stat().st_mode) == after
    assert stat.S_IMODE(workspace.evidence.stat().st_mode) == 0o700


def test_a_run_folder_is_private_and_removed_at_exit(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={})

    with workspace.run_folder("req-0123456789abcdef") as folder:
        (folder / "weights.safetensors").write_bytes(b"w")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    assert list(workspace.runs.iterdir()) == []


def test_a_run_folder_is_removed_when_the_run_raises(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={})

    with pytest.raises(KeyboardInterrupt), workspace.run_folder("req-0123456789abcdef"):
        raise KeyboardInterrupt

    assert list(workspace.runs.iterdir()) == []


@pytest.mark.parametrize("name", ["../escape", "Hot Beverage", "", "a/b"])
def test_only_opaque_ids_become_folder_names(tmp_path: Path, name: str) -> None:
    workspace = Workspace.open(tmp_path, environ={})

    with pytest.raises(InputError, match="opaque"), workspace.run_folder(name):
        pass


def test_the_sweep_leaves_living_runs_alone(tmp_path: Path) -> None:
    # Mutation: a sweep by age or by name alone would delete the folder of a long run.
    workspace = Workspace.open(tmp_path, environ={})

    with workspace.run_folder("req-0123456789abcdef") as folder:
        assert workspace.sweep_stale_runs() == 0
        assert folder.is_dir()


def test_the_sweep_removes_the_folder_of_a_killed_process(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path, environ={})
    script = (
        "import sys, pathlib\n"
        "from intake.workspace import Workspace\n"
        "workspace = Workspace.open(pathlib.Path(sys.argv[1]), environ={})\n"
        "with workspace.run_folder('req-0123456789abcdef') as f:\n"
        "    (f / 'gradient.bin').write_bytes(b'personal')\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert workspace.sweep_stale_runs() == 0  # alive

        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    assert len(list(workspace.runs.iterdir())) == 1
    assert workspace.sweep_stale_runs() == 1
    assert list(workspace.runs.iterdir()) == []
