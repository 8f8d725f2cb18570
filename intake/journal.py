"""The promotion journal: what an alias move intended and how far it came, written before each step.

After a SIGKILL `registry.promotion` compares it with the aliases and finishes or undoes the move.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, insert, select, update

from contracts.errors import PromotionConflict
from intake.database import transaction
from intake.tables import PROMOTIONS

# Steps after which an entry is closed.
CLOSED = ("done", "undone", "superseded")


@dataclass(frozen=True)
class JournalEntry:
    """One alias move: `champion` from_version -> to_version, `previous` previous_version -> from_version."""

    id: int
    model: str
    kind: str
    request_id: str
    from_version: str | None
    previous_version: str | None
    to_version: str
    step: str
    updated: datetime


class PromotionJournal:
    """The journal table of a ledger database (`Ledger.engine`)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(
        self,
        *,
        model: str,
        kind: str,
        request_id: str,
        from_version: str | None,
        previous_version: str | None,
        to_version: str,
    ) -> JournalEntry:
        """Write the intent, before any alias moves.

        Raises:
            PromotionConflict: an earlier move of that model is still open.
            StoreUnreachable: the ledger does not answer.
        """
        values = {
            "model": model,
            "kind": kind,
            "request_id": request_id,
            "from_version": from_version,
            "previous_version": previous_version,
            "to_version": to_version,
            "step": "intended",
            "updated": datetime.now(UTC),
        }
        with transaction(self._engine) as connection:
            if connection.execute(select(PROMOTIONS.c.id).where(_is_open(model))).first():
                raise PromotionConflict(f"an earlier promotion of model {model} is still open")
            row = connection.execute(insert(PROMOTIONS).values(values).returning(PROMOTIONS)).one()
        return _to_entry(row)

    def advance(self, entry_id: int, step: str) -> None:
        """Record that the entry reached `step`."""
        with transaction(self._engine) as connection:
            changed = update(PROMOTIONS).where(PROMOTIONS.c.id == entry_id)
            connection.execute(changed.values(step=step, updated=datetime.now(UTC)))

    def unfinished(self, model: str) -> JournalEntry | None:
        """The open entry of that model, if its process died."""
        with transaction(self._engine) as connection:
            row = connection.execute(select(PROMOTIONS).where(_is_open(model))).first()
        return None if row is None else _to_entry(row)


def _is_open(model: str) -> ColumnElement[bool]:
    return (PROMOTIONS.c.model == model) & PROMOTIONS.c.step.not_in(CLOSED)


def _to_entry(row: Row[Any]) -> JournalEntry:
    return JournalEntry(**row._mapping)
