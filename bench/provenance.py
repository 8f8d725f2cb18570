"""Where figures come from: command, machine, commit, versions; no host name and no path of this machine."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "open_clip_torch", "numpy", "scipy", "scikit-learn", "great-expectations")


def provenance(module: str) -> dict[str, Any]:
    """What somebody needs, beside the commit, who wants the same figures again.

    Args:
        module: as it was run with -m.
    """
    arguments = [_portable(argument) for argument in sys.argv[1:]]
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system().lower()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }


def commit(repo: Path) -> str:
    """The commit that is checked out, with "+" if tracked files differ from it."""
    head = _git(repo, "rev-parse", "HEAD")
    return head + ("+" if _git(repo, "status", "--porcelain", "--untracked-files=no") else "")


def _git(repo: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(command, cwd=repo, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    """None where it is not installed: what needs no gates runs without their package, say."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _portable(argument: str) -> str:
    """An argument that holds an absolute path, with the path's last part only."""
    name, equals, path = argument.rpartition("=")
    return f"{name}{equals}{Path(path).name}" if Path(path).is_absolute() else argument


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
