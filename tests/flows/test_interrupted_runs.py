"""Invariant 7: a run that dies, wherever, is finished by the next one, once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flows.unlearn import unlearn
from intake.claims import Claim
from intake.journal import PromotionJournal
from intake.workspace import Workspace
from registry.promotion import Promoter
from registry.store import Registry
from registry.versions import VersionInfo
from tasks import measure, profile, publish
from tasks.requests import take_in
from tasks.run import Running
from tasks.stores import open_ledger, open_registry
from tests.world import FORGET, FORGET_TWO, MODEL, Done


class Killed(BaseException):
    """SIGKILL, as far as one process can play it."""


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


def _killed_behind_the_champion(self: Registry, name: str, alias: str, version: str | None) -> None:
    set_alias(self, name, alias, version)
    raise Killed


set_alias = Registry.set_alias

# What is done, what is replaced by what to die there, and the aliases then; in the order of a run.
POINTS: tuple[tuple[str, Any, str, Callable[..., None], dict[str, str]], ...] = (
    ("plan bound", profile, "profile", _killed, {"champion": "1"}),
    ("weights edited", measure, "measure", _killed, {"champion": "1"}),
    ("version registered", Registry, "attach_certificate", _killed, {"champion": "1"}),
    ("certificate attached", publish, "promote_passed", _killed, {"champion": "1"}),
    ("champion moved", Registry, "set_alias", _killed_behind_the_champion, {"champion": "2"}),
    ("all but the ledger", Running, "finish", _killed, {"champion": "2", "previous": "1"}),
)


@contextmanager
def dying(patch: pytest.MonkeyPatch, place: Any, name: str, by: Callable[..., None]) -> Iterator[None]:
    """Die there; nothing that Python would still do on the way out is done."""
    with patch.context() as own:

        def die(*given: Any, **named: Any) -> None:
            own.setattr(Claim, "finish", lambda *_, **__: None)  # the row stays `running`
            own.setattr(Promoter, "_undo", lambda *_: None)
            own.setattr("intake.workspace._remove", lambda folder, owner: owner.release())
            by(*given, **named)

        own.setattr(place, name, die)
        with pytest.raises(Killed):
            yield


def test_a_run_that_dies_at_every_point_ends_as_an_undisturbed_one(
    workspace: Workspace, done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = take_in(workspace, MODEL, "object", FORGET, idempotency_key="undisturbed")
    registry, ledger = open_registry(workspace), open_ledger(workspace)
    monkeypatch.setattr("data.validate.validate_sets", lambda folders: None)  # seconds, and leaves nothing
    assert request.id == done.request_id

    for what, place, name, by, aliases in POINTS:
        with dying(monkeypatch, place, name, by):
            unlearn(request.id)
        assert ledger.get(request.id).state == "running", what
        assert len(list(workspace.runs.iterdir())) == 1, what
        assert registry.aliases(MODEL) == aliases, what
        champion = registry.describe(MODEL, "champion")
        assert champion.imported or "certificate_sha256" in champion.tags, what

    result = unlearn(request.id)

    same = ("verdict", "promoted", "base_version", "version", "edited", "forget", "retain")
    assert {k: result[k] for k in same} == {k: done.result[k] for k in same}
    assert state(registry) == state(open_registry(Workspace.open(done.home, environ={})))
    assert PromotionJournal(ledger.engine).unfinished(MODEL) is None
    row = ledger.get(request.id)
    assert (row.state, row.attempts) == ("passed", len(POINTS) + 1)
    assert list(workspace.runs.iterdir()) == []


def test_a_run_that_died_before_it_registered_anything_builds_on_the_champion_of_its_next_attempt(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, overtaking = overtaken(workspace, monkeypatch, profile, "profile")
    assert overtaking["promoted"]

    result = unlearn(first)

    assert (result["base_version"], result["promoted"]) == (overtaking["version"], True)
    assert [v.tags["base_version"] for v in open_registry(workspace).versions(MODEL)[1:]] == ["1", "2"]


def test_a_candidate_that_was_overtaken_before_it_was_promoted_is_made_anew(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bound to its first plan it would be compared with a version that is no champion any more, for ever."""
    first, overtaking = overtaken(workspace, monkeypatch, publish, "promote_passed")
    assert (overtaking["version"], overtaking["promoted"]) == ("3", True)

    result = unlearn(first)

    assert (result["base_version"], result["version"], result["promoted"]) == ("3", "4", True)
    assert open_registry(workspace).aliases(MODEL) == {"champion": "4", "previous": "3"}


def overtaken(
    workspace: Workspace, patch: pytest.MonkeyPatch, place: Any, name: str
) -> tuple[str, dict[str, Any]]:
    """A request whose first run died there, and the result of another one that ran then."""
    first = take_in(workspace, MODEL, "object", FORGET)
    second = take_in(workspace, MODEL, "object", FORGET_TWO)
    patch.setattr("data.validate.validate_sets", lambda folders: None)
    with dying(patch, place, name, _killed):
        unlearn(first.id)
    return first.id, unlearn(second.id)


def state(registry: Registry) -> tuple[dict[str, str], list[dict[str, str]], int]:
    """Aliases, every version's tags (but its certificate's, which tells the time), and MLflow runs."""
    experiments = [e.experiment_id for e in registry.client.search_experiments()]
    return (
        registry.aliases(MODEL),
        [_tags(version) for version in registry.versions(MODEL)],
        len(registry.client.search_runs(experiments)),
    )


def _tags(version: VersionInfo) -> dict[str, str]:
    return {name: value for name, value in version.tags.items() if name != "certificate_sha256"}
