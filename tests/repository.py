"""What the repositories of all test worlds have in common, and how a request is carried through in one."""

import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

Bound = tuple[str, str, str, float]
"""Side ("max" or "min"), kind of gate, column, value."""


def git(folder: Path, *arguments: str) -> str:
    """Standard output of git in a folder, under a made-up identity."""
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def begin(root: Path, store: str = "../store") -> None:
    """An empty git and DVC repository; `store` is its remote, seen from the folder .dvc."""
    from dvc.repo import Repo

    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    Repo.init(str(root)).close()
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = {store}\n"
    )


def finish(root: Path, models: Mapping[str, Any], tracked: Iterable[Path] = ()) -> None:
    """Write slugline.yaml, track and push the sets, the labels and what else is named, and commit."""
    from dvc.repo import Repo

    (root / "slugline.yaml").write_text(yaml.safe_dump({"models": models}))
    with Repo(str(root)) as repo:
        repo.add([str(path) for path in (*sorted((root / "sets").iterdir()), root / "labels", *tracked)])
        repo.push()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "sets")


def write_gates(path: Path, bounds: Iterable[Bound]) -> None:
    """A gate file, named as its suite."""
    expectations = [
        {
            "type": f"expect_column_{side}_to_be_between",
            "kwargs": {"column": column, f"{side}_value": value},
            "meta": {"kind": kind, "why": "for tests"},
        }
        for side, kind, column, value in bounds
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({"name": path.stem, "expectations": expectations}))


@contextmanager
def dvc_site(folder: Path) -> Iterator[None]:
    """DVC's caches of the whole machine, in a folder while a world is made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "dvc-site"))
        yield
