"""Invariant 8: after a run no picture, caption, name or gradient of a forget set lies about."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import SetError
from flows.unlearn import unlearn
from intake.workspace import Workspace
from tasks.requests import take_in
from tests.world import (
    FORGET,
    FORGET_OVERLAP,
    FORGET_PERSONAL,
    MODEL,
    SEEN,
    SUBJECT,
    UNSEEN,
    Done,
    World,
)

NAMES = [name.encode() for name in (*SEEN, *UNSEEN)]


def files_holding(needles: Iterable[bytes], *folders: Path) -> set[Path]:
    """Every file below the folders that holds one of the needles."""
    found, needles = set(), list(needles)
    for folder in folders:
        for file in folder.rglob("*"):
            content = file.read_bytes() if file.is_file() else b""
            if any(needle in content for needle in needles):
                found.add(file)
    return found


def bodies(pictures: Iterable[bytes]) -> list[bytes]:
    """The compressed pixels of PNGs: what every copy of one holds."""
    return [picture[picture.index(b"IDAT") + 4 :][:100] for picture in pictures]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A TMPDIR of the test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """The first bytes of every gradient that a run writes into its folder."""
    from unlearning import gradients

    taken: list[bytes] = []
    save = gradients.save_gradients

    def saved(found: Mapping[str, Mapping[str, Any]], path: Path) -> None:
        save(found, path)
        for layers in found.values():
            taken.extend(g.numpy().tobytes()[:64] for g in layers.values())
        assert files_holding(taken, path.parent) == {path}  # the search can find them

    monkeypatch.setattr(gradients, "save_gradients", saved)
    return taken


def test_a_run_on_a_personal_set_leaves_no_trace_of_it(
    workspace: Workspace,
    world: World,
    temporary: Path,
    gradients: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pictures = bodies(world.pictures(FORGET_PERSONAL))
    captions = [caption.encode() for caption in world.captions(FORGET_PERSONAL)]
    assert all(SUBJECT.encode() in caption for caption in captions)
    assert files_holding(pictures, world.root / FORGET_PERSONAL)  # the search can find them
    logging.getLogger("slugline").propagate = True
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.INFO, logger="slugline")  # commands that ran before may have made it quiet

    request = take_in(workspace, MODEL, "object", FORGET_PERSONAL)
    result = unlearn(request.id)

    assert Path(result["report"]).is_file()
    assert len(gradients) > 0
    secrets = [*pictures, *captions, *gradients, *NAMES, SUBJECT.encode()]
    outside = [workspace.home, temporary, workspace.home.parent / "dvc-site"]
    assert files_holding(secrets, *outside) == set()
    assert "unlearn" in caplog.text
    assert not [s for s in secrets if s in caplog.text.encode()]


def test_a_run_on_public_sets_names_them_in_its_report_only(done: Done, world: World) -> None:
    home = done.home

    assert {f.relative_to(home).parts[0] for f in files_holding(NAMES, home)} == {"reports"}
    # The report's pictures are held-out ones.
    assert files_holding(bodies(world.pictures(FORGET)), home) == set()


def test_prefect_stores_opaque_ids_only(workspace: Workspace, done: Done) -> None:
    """Parameters, states, logs and events of every flow so far, and of one that fails here."""
    from prefect.settings import PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL

    failing = take_in(workspace, MODEL, "object", FORGET_OVERLAP)
    with pytest.raises(SetError):
        unlearn(failing.id)

    database = Path(str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value()).partition("///")[2])
    assert files_holding([failing.id.encode()], database.parent)
    assert files_holding([b"the forget and retain sets share"], database.parent)  # the state's message
    assert files_holding([*NAMES, SUBJECT.encode()], database.parent, PREFECT_HOME.value()) == set()
