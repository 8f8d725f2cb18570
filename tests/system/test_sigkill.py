"""SIGKILL anywhere, run again: the registry is as if nothing had happened, and nothing lies about."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from intake.workspace import Workspace
from registry import versions as tag
from tasks.stores import open_ledger, open_promoter, open_registry
from tests.system.attempts import Attempt, Death
from tests.world import MODEL

# Aliases: the first move (call 1) makes the base champion, the second (2, 3) the candidate.
DEATHS = (
    Death("registry.embedded:_write_empty_store", "leave"),
    Death("data.pins:PinnedRepo.fetch_set", "leave", call=6),
    Death("unlearning.slug:search_and_edit", "leave"),
    Death("registry.store:Registry.attach_certificate", "enter"),
    Death("tasks.publish:open_promoter", "enter"),
    Death("registry.store:Registry.set_alias", "leave", call=2),
    Death("tasks.run:Running.finish", "enter"),
)


def state(home: Path) -> dict[str, Any]:
    """What must not depend on how often the work was interrupted: registry, ledger and leftovers."""
    workspace = Workspace.open(home, environ={})
    registry = open_registry(workspace)
    return {
        # A certificate says when its run began and ended, so its digest differs from attempt to attempt.
        "versions": [
            (v.version, v.aliases, {k: t for k, t in v.tags.items() if k != tag.CERTIFICATE})
            for v in registry.versions(MODEL)
        ],
        "certified": [tag.CERTIFICATE in v.tags for v in registry.versions(MODEL)],
        "runs in MLflow": _count(home / "registry.db", "runs"),
        "requests": [(r.id, r.state, r.evidence.version) for r in open_ledger(workspace).list()],
        "alias moves to finish": open_promoter(workspace).reconcile(MODEL),
        "run folders": [path.name for path in workspace.runs.iterdir()],
    }


def _count(database: Path, table: str) -> int:
    with closing(sqlite3.connect(database)) as store:
        return int(store.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.fixture(scope="session")
def undisturbed(attempt_in: Callable[[Path], Attempt], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("undisturbed") / "home"
    assert attempt_in(home).run() == 0
    return state(home)


def test_the_undisturbed_run_promotes_both(undisturbed: Any) -> None:
    """Otherwise the deaths around promotion would not be reached and the comparison would prove little."""
    assert [aliases for _, aliases, _ in undisturbed["versions"]] == [(), ("previous",), ("champion",)]
    assert undisturbed["certified"] == [False, True, True]
    assert undisturbed["runs in MLflow"] == 3
    assert [s for _, s, _ in undisturbed["requests"]] == ["passed", "passed"]
    assert undisturbed["run folders"] == []


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_run_again_after_sigkill_ends_as_if_undisturbed(
    death: Death, undisturbed: Any, attempt_in: Callable[[Path], Attempt], tmp_path: Path
) -> None:
    attempt = attempt_in(tmp_path / "home")
    assert attempt.run(death) == -9
    assert attempt.run() == 0
    assert state(tmp_path / "home") == undisturbed
