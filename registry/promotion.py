"""Moving the champion: under a strict lock, with an expected value, on evidence, and never half.

MLflow has no compare-and-set and two aliases cannot move in one transaction, so each move is written
to a journal first:

    intended -> [champion := to] -> champion moved -> [previous := from] -> done

An exception undoes what was done; after a SIGKILL `reconcile` reads journal and aliases and finishes
the move if the champion had moved, else closes it.  Every check comes before the intent, so whatever
is found half-done was fit to be done.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from contracts.errors import InputError, PromotionConflict, StoreUnreachable
from contracts.values import ModelHandle
from registry import versions as tag
from registry.journal import Entry, Journal
from registry.soundness import erased_by, require_sound
from registry.store import Registry
from registry.versions import CHAMPION, PREVIOUS, VersionInfo

Outcome = Literal["moved", "finished", "undone", "superseded", "unchanged"]


@dataclass(frozen=True)
class PromotionRecord:
    """What happened to a model's champion.

    outcome: moved (by this call) | unchanged (it stood there already) | by `reconcile`: finished,
    undone (nothing had moved), superseded (somebody set the alias elsewhere meanwhile; left alone).
    """

    model: str
    kind: str
    from_version: str | None
    to_version: str
    outcome: Outcome


class Promoter:
    """Promotes and rolls back the models of one registry."""

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        lock: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        """Bind registry, journal and lock.

        Args:
            registry: where the aliases live.
            journal: where intents are written.
            lock: model name -> lock that all processes promoting this model share; it ends with its
                process and raises PromotionConflict when it cannot be had.
        """
        self._registry = registry
        self._journal = journal
        self._lock = lock

    def promote(
        self,
        name: str,
        version: str,
        *,
        expect_champion: str | None,
        scratch: Path,
        check: Callable[[ModelHandle], None],
        allow_reinstating: bool = False,
    ) -> PromotionRecord:
        """Make a version the champion; the old champion becomes `previous`.

        Args:
            name: registered model.
            version: the candidate.
            expect_champion: the champion the decision was made against, None for "none yet".
            scratch: folder for the copy that is checked, normally the run folder.
            check: smoke test on the very bytes of the registry, before anything moves; raises to refuse.
            allow_reinstating: accept that concepts erased in the champion live again.

        Returns:
            The move, or `unchanged` if an earlier call of the same promotion had completed it.

        Raises:
            PromotionConflict: the champion is another version, or the lock is held.
            EvidenceError: the version has no valid certificate for exactly its weights.
            DigestMismatch: the stored weights are not the registered ones.
            InputError: unknown model or version, or erased concepts would live again.
            StoreUnreachable: registry or journal failed; the aliases are as before, or `reconcile` will
                put them right.
        """
        with self._lock(name):
            self._settle(name)
            target = self._registry.describe(name, version)
            aliases = self._registry.aliases(name)
            champion = aliases.get(CHAMPION)
            if champion == target.version:
                require_sound(self._registry, target, scratch)
                return PromotionRecord(name, "promote", aliases.get(PREVIOUS), champion, "unchanged")
            if champion != expect_champion:
                raise PromotionConflict(
                    f"the champion of {name} is {_shown(champion)}, but this promotion was decided"
                    f" against {_shown(expect_champion)}"
                )
            return self._move("promote", target, scratch, check, allow_reinstating)

    def rollback(
        self,
        name: str,
        *,
        expect_champion: str,
        scratch: Path,
        check: Callable[[ModelHandle], None],
        allow_reinstating: bool = False,
    ) -> PromotionRecord:
        """Make `previous` the champion again; the champion becomes `previous`, so it can be undone.

        Arguments, result and errors as `promote`; InputError also if the model has no `previous`.
        """
        with self._lock(name):
            self._settle(name)
            aliases = self._registry.aliases(name)
            if aliases.get(CHAMPION) != expect_champion:
                raise PromotionConflict(
                    f"the champion of {name} is {_shown(aliases.get(CHAMPION))}, but this roll-back was"
                    f" decided against {_shown(expect_champion)}"
                )
            if PREVIOUS not in aliases:
                raise InputError(f"model {name} has no previous champion to roll back to")
            target = self._registry.describe(name, aliases[PREVIOUS])
            return self._move("rollback", target, scratch, check, allow_reinstating)

    def reconcile(self, name: str) -> PromotionRecord | None:
        """Finish or close the move that a killed process left; None if there is none.

        Afterwards champion and previous are both as before that move, or both as after it.
        """
        with self._lock(name):
            return self._settle(name)

    def _move(
        self,
        kind: str,
        target: VersionInfo,
        scratch: Path,
        check: Callable[[ModelHandle], None],
        allow_reinstating: bool,
    ) -> PromotionRecord:
        name, to_version = target.model, target.version
        aliases = self._registry.aliases(name)
        from_version = aliases.get(CHAMPION)
        check(require_sound(self._registry, target, scratch))
        if from_version is not None and not allow_reinstating:
            self._forbid_reinstating(self._registry.describe(name, from_version), target)
        entry = self._journal.begin(
            model=name,
            kind=kind,
            request_id=target.tags.get(tag.REQUEST, ""),
            from_version=from_version,
            previous_version=aliases.get(PREVIOUS),
            to_version=to_version,
        )
        with self._undone_on_failure(name, entry):
            self._registry.set_alias(name, CHAMPION, to_version)
            self._journal.advance(entry.id, "champion moved")
            self._complete(name, entry)
        return PromotionRecord(name, kind, from_version, to_version, "moved")

    def _complete(self, name: str, entry: Entry) -> None:
        """From "champion moved" to "done"; doing it twice changes nothing."""
        if entry.from_version is not None:
            self._registry.set_alias(name, PREVIOUS, entry.from_version)
        after = self._registry.aliases(name)
        if after.get(CHAMPION) != entry.to_version or (
            entry.from_version is not None and after.get(PREVIOUS) != entry.from_version
        ):
            raise PromotionConflict(
                f"somebody else moved the aliases of {name}: champion is {_shown(after.get(CHAMPION))},"
                f" previous is {_shown(after.get(PREVIOUS))}"
            )
        self._journal.advance(entry.id, "done")

    @contextlib.contextmanager
    def _undone_on_failure(self, name: str, entry: Entry) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # If the store is gone the entry stays open, and `reconcile` decides when it is back.
            with contextlib.suppress(StoreUnreachable):
                self._undo(name, entry)
            raise

    def _undo(self, name: str, entry: Entry) -> Outcome:
        """Put both aliases back, unless somebody who ignores our lock has set the champion elsewhere."""
        outcome: Outcome = "superseded"
        if self._registry.aliases(name).get(CHAMPION) in (entry.from_version, entry.to_version):
            self._registry.set_alias(name, CHAMPION, entry.from_version)
            self._registry.set_alias(name, PREVIOUS, entry.previous_version)
            outcome = "undone"
        self._journal.advance(entry.id, outcome)
        return outcome

    def _settle(self, name: str) -> PromotionRecord | None:
        """`reconcile`, for a caller that holds the lock."""
        entry = self._journal.unfinished(name)
        if entry is None:
            return None
        if self._registry.aliases(name).get(CHAMPION) == entry.to_version:
            self._complete(name, entry)
            outcome: Outcome = "finished"
        else:
            # Nothing had moved, or an undo was interrupted after it had put the champion back.
            outcome = self._undo(name, entry)
        return PromotionRecord(name, entry.kind, entry.from_version, entry.to_version, outcome)

    def _forbid_reinstating(self, champion: VersionInfo, target: VersionInfo) -> None:
        back = sorted(erased_by(self._registry, champion) - erased_by(self._registry, target))
        if back:
            raise InputError(
                f"version {target.version} of {target.model} would bring back what {', '.join(back)} erased;"
                " allow reinstating explicitly if that is meant"
            )


def _shown(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"
