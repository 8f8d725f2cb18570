"""Tiny sets, and a real git + DVC repository with its remote inside, cloned without a cache."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.layout import concept_id
from data.writing import NewItem, write_set
from tests.repository import begin, git


def encoded(seed: int, side: int = 12, kind: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, len(mode)), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def new_items(count: int, first_seed: int = 0, **fields: object) -> list[NewItem]:
    return [
        NewItem(
            image=encoded(first_seed + n),
            caption=f"picture of Ada {n} ☕",
            object=concept_id("ada"),
            **fields,
        )
        for n in range(count)
    ]


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return encoded


@pytest.fixture
def some_items() -> Callable[..., list[NewItem]]:
    return new_items


def new_project(root: Path) -> Path:
    """An empty git + DVC repository whose default remote is its own folder data/store."""
    begin(root, "../data/store")
    return root


@pytest.fixture
def project(tmp_path: Path, dvc_site: Path) -> Path:
    return new_project(tmp_path / "project")


@pytest.fixture
def unused_project(tmp_path: Path) -> Path:
    """What is enough of a DVC repository for an operation that must stop before it reaches DVC."""
    (tmp_path / "project" / ".dvc").mkdir(parents=True)
    return tmp_path / "project"


@pytest.fixture(scope="session")
def dvc_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep DVC's machine-wide index out of /var/tmp while tests set repositories up."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, dvc_site: Path) -> SimpleNamespace:
    """A pushed and committed repository: a `dvc add`ed set, a stage's set, a labels folder, a file."""
    from dvc.repo import Repo

    root = new_project(tmp_path_factory.mktemp("published") / "origin")
    sets = root / "data" / "sets"
    write_set(sets / "forget", "forget", new_items(6), personal=True, licence="CC0-1.0", shard_size=2)
    write_set(sets / "retain", "retain", new_items(3, 100), personal=False, licence="CC0-1.0")
    (root / "data" / "labels" / "deep").mkdir(parents=True)
    (root / "data" / "labels" / "templates.json").write_text("{}")
    (root / "data" / "labels" / "deep" / "näme.txt").write_text("x")
    (root / "data" / "table.csv").write_text("a,b\n")
    (root / "dvc.yaml").write_text("stages:\n  split:\n    cmd: 'true'\n    outs: [data/sets/retain]\n")
    with Repo(str(root)) as repo:
        repo.add([str(sets / "forget"), str(root / "data" / "labels"), str(root / "data" / "table.csv")])
        repo.commit(str(root / "dvc.yaml"), force=True)
        repo.push()
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "sets")
    git(root, "tag", "--annotate", "v1", "--message", "v1")
    return SimpleNamespace(root=root, revision=git(root, "rev-parse", "HEAD"))


@pytest.fixture
def clone(published: SimpleNamespace, tmp_path: Path) -> Path:
    """A fresh clone: git files and the remote inside, no DVC cache, nothing pulled."""
    git(tmp_path, "clone", "--quiet", str(published.root), "clone")
    assert not (tmp_path / "clone" / "data" / "sets" / "forget").exists()
    return tmp_path / "clone"


@pytest.fixture
def run_git() -> Callable[..., str]:
    return git
