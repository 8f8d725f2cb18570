"""The champion moves on evidence, to exactly one of two states, wherever the process dies."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from contracts.errors import DigestMismatch, EvidenceError, InputError, PromotionConflict, StoreUnreachable
from contracts.values import ModelHandle
from intake.journal import JournalEntry, PromotionJournal
from intake.ledger import Ledger
from intake.locks import model_lock
from intake.workspace import Workspace
from registry.promotion import Promoter
from registry.store import Registry
from tests.registry.models import NAME, certificate, certify, register_candidate, register_import, request_id

REPOSITORY = Path(__file__).parents[2]
OLD = {"champion": "2", "previous": "1"}
NEW = {"champion": "3", "previous": "2"}
FIRST_REQUEST, SECOND_REQUEST = request_id(1), request_id(2)


T = TypeVar("T")


def accept(_: ModelHandle) -> None:
    """A smoke check that passes."""


class Death(BaseException):
    """The process dies here: nothing it would do afterwards happens."""


class Mortal:
    """Counts the writes of registry and journal, and dies before a given one."""

    def __init__(self, dies_before: int) -> None:
        self.writes = 0
        self.dead = False
        self._dies_before = dies_before

    def write(self, action: Callable[[], T]) -> T:
        self.dead = self.dead or self.writes == self._dies_before
        self.alive()
        self.writes += 1
        return action()

    def alive(self) -> None:
        if self.dead:
            raise Death


class MortalRegistry(Registry):
    def __init__(self, home: Path, life: Mortal, fail_on: str | None = None) -> None:
        super().__init__(None, home)
        self._life = life
        self._fail_on = fail_on

    def aliases(self, name: str) -> dict[str, str]:
        self._life.alive()
        return super().aliases(name)

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        if alias == self._fail_on:
            self._fail_on = None
            raise StoreUnreachable("the registry failed once")
        self._life.write(lambda: super(MortalRegistry, self).set_alias(name, alias, version))


class MortalJournal(PromotionJournal):
    def __init__(self, ledger: Ledger, life: Mortal) -> None:
        super().__init__(ledger.engine)
        self._life = life

    def begin(self, **entry: Any) -> JournalEntry:
        return self._life.write(lambda: super(MortalJournal, self).begin(**entry))

    def advance(self, entry_id: int, step: str) -> None:
        self._life.write(lambda: super(MortalJournal, self).advance(entry_id, step))


def _promoter(workspace: Workspace, life: Mortal | None = None, fail_on: str | None = None) -> Promoter:
    """Registry, journal and lock as a new process would open them."""
    life = life or Mortal(dies_before=-1)
    return Promoter(
        MortalRegistry(workspace.home, life, fail_on),
        MortalJournal(Ledger(workspace.ledger_url, workspace.locks), life),
        lambda model: model_lock(workspace.ledger_url, workspace.locks, model, timeout_s=0.0),
    )


def _promote(
    promoter: Promoter, workspace: Workspace, version: str, expect: str | None, **options: Any
) -> str:
    settings = {"scratch": workspace.runs / "scratch", "check": accept, **options}
    return promoter.promote(NAME, version, expect_champion=expect, **settings).outcome


def _roll_back(promoter: Promoter, workspace: Workspace, expect: str, **options: Any) -> str:
    settings = {"scratch": workspace.runs / "scratch", "check": accept, **options}
    return promoter.rollback(NAME, expect_champion=expect, **settings).outcome


def test_the_old_champion_becomes_previous(lineage: Workspace, registry: Registry) -> None:
    seen: list[ModelHandle] = []

    record = _promoter(lineage).promote(
        NAME, "3", expect_champion="2", scratch=lineage.runs / "scratch", check=seen.append
    )

    assert (record.from_version, record.to_version, record.outcome) == ("2", "3", "moved")
    assert registry.aliases(NAME) == NEW
    assert [(h.name, h.version) for h in seen] == [(NAME, "3")]


def test_promoting_twice_moves_once(lineage: Workspace, registry: Registry) -> None:
    _promote(_promoter(lineage), lineage, "3", "2")

    # The same call again (a retry): the expected champion is no longer there because the work is done.
    assert _promote(_promoter(lineage), lineage, "3", "2") == "unchanged"
    assert registry.aliases(NAME) == NEW


def test_a_champion_that_moved_meanwhile_is_a_conflict_that_names_both(
    lineage: Workspace, registry: Registry
) -> None:
    with pytest.raises(PromotionConflict, match=r"is version 2, .* against version 1"):
        _promote(_promoter(lineage), lineage, "3", "1")
    with pytest.raises(PromotionConflict, match=r"is version 2, .* against no version"):
        _promote(_promoter(lineage), lineage, "3", None)
    with pytest.raises(PromotionConflict, match=r"is version 2, .* against version 3"):
        _roll_back(_promoter(lineage), lineage, "3")
    assert registry.aliases(NAME) == OLD


def test_one_promotion_at_a_time(lineage: Workspace, registry: Registry) -> None:
    with (
        model_lock(lineage.ledger_url, lineage.locks, NAME),
        pytest.raises(PromotionConflict, match="another process"),
    ):
        _promote(_promoter(lineage), lineage, "3", "2")
    assert registry.aliases(NAME) == OLD


def test_a_failed_smoke_check_moves_nothing(lineage: Workspace, registry: Registry) -> None:
    def refuse(_: ModelHandle) -> None:
        assert registry.aliases(NAME) == OLD  # checked before the move: it never was champion
        raise RuntimeError("does not load")

    with pytest.raises(RuntimeError):
        _promote(_promoter(lineage), lineage, "3", "2", check=refuse)
    assert registry.aliases(NAME) == OLD
    assert _promoter(lineage).reconcile(NAME) is None


def test_a_version_without_certificate_is_not_promoted(
    lineage: Workspace, registry: Registry, tmp_path: Path
) -> None:
    version = register_candidate(registry, tmp_path, 3, "2")

    with pytest.raises(EvidenceError, match="carries no certificate"):
        _promote(_promoter(lineage), lineage, version, "2")
    assert registry.aliases(NAME) == OLD


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hits_after": 50}, "says 'failed'"),
        ({"weights": "f" * 64}, "weights: .* certified are f{64}"),
        ({"number": 9}, "is about plan"),
    ],
)
def test_a_certificate_must_be_passed_and_about_these_weights(
    lineage: Workspace, registry: Registry, tmp_path: Path, wrong: dict[str, Any], message: str
) -> None:
    version = register_candidate(registry, tmp_path, 3, "2")
    certify(registry, tmp_path, version, **wrong)

    with pytest.raises(EvidenceError, match=message):
        _promote(_promoter(lineage), lineage, version, "2")
    assert registry.aliases(NAME) == OLD


def test_a_certificate_that_is_silent_about_earlier_erasures_promotes_nothing(
    lineage: Workspace, registry: Registry, tmp_path: Path
) -> None:
    version = register_candidate(registry, tmp_path, 3, "2", silent=True)
    certify(registry, tmp_path, version, silent=True)

    with pytest.raises(EvidenceError, match=r"of 0 earlier request\(s\), its base version 2 carries 1"):
        _promote(_promoter(lineage), lineage, version, "2")
    assert registry.aliases(NAME) == OLD


def test_a_verdict_turned_into_passed_does_not_verify(
    lineage: Workspace, registry: Registry, tmp_path: Path
) -> None:
    # Mutation: reading the decision without deriving it again would promote this.
    version = register_candidate(registry, tmp_path, 3, "2")
    honest = certificate(registry, tmp_path, version, hits_after=50).read_text()
    forged = tmp_path / "forged.json"
    forged.write_text(honest.replace('"decision": "failed"', '"decision": "passed"'))
    assert forged.read_text() != honest
    registry.attach_certificate(NAME, version, forged)

    with pytest.raises(EvidenceError, match="does not verify"):
        _promote(_promoter(lineage), lineage, version, "2")
    assert registry.aliases(NAME) == OLD


def test_a_certificate_changed_in_the_store_is_noticed(lineage: Workspace, registry: Registry) -> None:
    stored = _stored(registry, "3") / "evidence" / "certificate.json"
    stored.write_text(stored.read_text() + " ")

    with pytest.raises(EvidenceError, match="attached was"):
        _promote(_promoter(lineage), lineage, "3", "2")
    assert registry.aliases(NAME) == OLD


def test_weights_changed_in_the_store_are_noticed(lineage: Workspace, registry: Registry) -> None:
    (_stored(registry, "3") / "model" / "weights.safetensors").write_text("bit rot")

    with pytest.raises(DigestMismatch):
        _promote(_promoter(lineage), lineage, "3", "2")
    assert registry.aliases(NAME) == OLD


def test_rolling_back_over_an_erasure_must_be_explicit(lineage: Workspace, registry: Registry) -> None:
    with pytest.raises(InputError, match=f"bring back what {FIRST_REQUEST} erased"):
        _roll_back(_promoter(lineage), lineage, "2")
    assert registry.aliases(NAME) == OLD

    # The imported base has no erasure certificate, and needs none.
    assert _roll_back(_promoter(lineage), lineage, "2", allow_reinstating=True) == "moved"
    assert registry.aliases(NAME) == {"champion": "1", "previous": "2"}
    # Forward again: nothing that was erased comes back.
    assert _roll_back(_promoter(lineage), lineage, "1") == "moved"
    assert registry.aliases(NAME) == OLD


def test_only_what_the_target_does_not_erase_counts_as_reinstated(lineage: Workspace) -> None:
    # Version 3 is based on 2, so it erases the first request too.
    _promote(_promoter(lineage), lineage, "3", "2")

    with pytest.raises(InputError, match=f"bring back what {SECOND_REQUEST} erased"):
        _roll_back(_promoter(lineage), lineage, "3")


def test_promoting_a_version_of_an_older_base_must_be_explicit_too(
    lineage: Workspace, registry: Registry, tmp_path: Path
) -> None:
    certify(registry, tmp_path, register_candidate(registry, tmp_path, 3, base="1"))

    with pytest.raises(InputError, match=f"bring back what {FIRST_REQUEST} erased"):
        _promote(_promoter(lineage), lineage, "4", "2")
    assert registry.aliases(NAME) == OLD


def test_there_must_be_something_to_roll_back_to(
    workspace: Workspace, registry: Registry, tmp_path: Path
) -> None:
    register_import(registry, tmp_path)
    _promote(_promoter(workspace), workspace, "1", None)

    with pytest.raises(InputError, match="no previous champion"):
        _roll_back(_promoter(workspace), workspace, "1")


@pytest.mark.parametrize("alias", ["champion", "previous"])
def test_a_failure_midway_restores_both_aliases(lineage: Workspace, registry: Registry, alias: str) -> None:
    with pytest.raises(StoreUnreachable):
        _promote(_promoter(lineage, fail_on=alias), lineage, "3", "2")

    assert registry.aliases(NAME) == OLD
    assert _promoter(lineage).reconcile(NAME) is None


def test_a_failure_midway_of_the_first_promotion_leaves_no_champion(
    workspace: Workspace, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_import(registry, tmp_path)
    promoter = _promoter(workspace)

    def fail(name: str, entry: object) -> None:
        raise StoreUnreachable("gone")

    monkeypatch.setattr(promoter, "_complete", fail)
    with pytest.raises(StoreUnreachable):
        _promote(promoter, workspace, "1", None)
    assert registry.aliases(NAME) == {}


def test_an_alias_moved_by_others_is_left_alone(lineage: Workspace, registry: Registry) -> None:
    # A tool that ignores our lock moves the champion just after we did.
    life = Mortal(dies_before=3)
    with pytest.raises(Death):
        _promote(_promoter(lineage, life), lineage, "3", "2")
    registry.set_alias(NAME, "champion", "1")

    record = _promoter(lineage).reconcile(NAME)

    assert record is not None
    assert record.outcome == "superseded"
    assert registry.aliases(NAME)["champion"] == "1"
    assert _promoter(lineage).reconcile(NAME) is None


# The five writes of a move: intent, champion, "champion moved", previous, "done".
@pytest.mark.parametrize("dies_before", range(6))
def test_death_anywhere_leaves_old_or_new_and_a_second_run_ends_in_the_same_state(
    lineage: Workspace, registry: Registry, dies_before: int
) -> None:
    life = Mortal(dies_before)
    if dies_before < 5:
        with pytest.raises(Death):
            _promote(_promoter(lineage, life), lineage, "3", "2")
    else:
        _promote(_promoter(lineage, life), lineage, "3", "2")
        assert life.writes == 5  # Mutation: a sixth write would be a death nobody tested.
    assert "champion" in registry.aliases(NAME)

    _promoter(lineage).reconcile(NAME)

    # The champion had moved from the second write on: then the move is finished, else nothing happened.
    assert registry.aliases(NAME) == (OLD if dies_before <= 1 else NEW)
    assert _promoter(lineage).reconcile(NAME) is None
    _promote(_promoter(lineage), lineage, "3", "2")
    assert registry.aliases(NAME) == NEW


@pytest.mark.parametrize("dies_before", [1, 3])
def test_a_second_run_needs_no_reconcile_by_hand(
    lineage: Workspace, registry: Registry, dies_before: int
) -> None:
    with pytest.raises(Death):
        _promote(_promoter(lineage, Mortal(dies_before)), lineage, "3", "2")

    assert _promote(_promoter(lineage), lineage, "3", "2") == ("moved" if dies_before <= 1 else "unchanged")
    assert registry.aliases(NAME) == NEW


@pytest.mark.parametrize("dies_before", [1, 2, 4])
def test_death_during_a_roll_back(lineage: Workspace, registry: Registry, dies_before: int) -> None:
    with pytest.raises(Death):
        _roll_back(_promoter(lineage, Mortal(dies_before)), lineage, "2", allow_reinstating=True)

    _promoter(lineage).reconcile(NAME)

    assert registry.aliases(NAME) == (OLD if dies_before <= 1 else {"champion": "1", "previous": "2"})


# Writes: intent, champion, "champion moved", (previous fails), then the undo: champion, previous, "undone".
@pytest.mark.parametrize("dies_before", range(3, 6))
def test_death_during_the_undo(lineage: Workspace, registry: Registry, dies_before: int) -> None:
    with pytest.raises(Death):
        _promote(_promoter(lineage, Mortal(dies_before), fail_on="previous"), lineage, "3", "2")

    _promoter(lineage).reconcile(NAME)

    # Before the undo put the champion back, the move is finished; afterwards it stays undone.
    assert registry.aliases(NAME) == (NEW if dies_before == 3 else OLD)
    assert _promoter(lineage).reconcile(NAME) is None


def test_a_real_sigkill_between_the_two_aliases(lineage: Workspace, registry: Registry) -> None:
    script = (
        "import os, signal, sys, pathlib\n"
        "from tests.registry.test_promotion import _promote, _promoter, Workspace\n"
        "from registry.store import Registry\n"
        "move = Registry.set_alias\n"
        "def move_and_die(self, name, alias, version):\n"
        "    move(self, name, alias, version)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Registry.set_alias = move_and_die\n"
        "workspace = Workspace.open(pathlib.Path(sys.argv[1]), environ={})\n"
        "_promote(_promoter(workspace), workspace, '3', '2')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(lineage.home)], cwd=REPOSITORY, env={"PATH": os.environ["PATH"]}
    )
    assert killed.returncode == -signal.SIGKILL
    assert registry.aliases(NAME) == {"champion": "3", "previous": "1"}  # half-way

    # The dead process holds no lock, and its move is finished.
    record = _promoter(lineage).reconcile(NAME)

    assert record is not None
    assert record.outcome == "finished"
    assert registry.aliases(NAME) == NEW


def _stored(registry: Registry, version: str) -> Path:
    run = registry.client.get_run(registry.describe(NAME, version).run_id)
    return Path(run.info.artifact_uri.removeprefix("file://"))
