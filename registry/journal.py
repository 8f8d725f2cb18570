"""What promotion needs of a journal; `intake.journal` keeps one in the ledger's database."""

from typing import Protocol


class Entry(Protocol):
    """One alias move: `champion` from_version -> to_version, `previous` previous_version -> from_version."""

    @property
    def id(self) -> int:
        """Key of the entry."""

    @property
    def kind(self) -> str:
        """promote or rollback."""

    @property
    def from_version(self) -> str | None:
        """The champion before the move, None if there was none."""

    @property
    def previous_version(self) -> str | None:
        """What `previous` pointed at before the move."""

    @property
    def to_version(self) -> str:
        """The champion after the move."""


class Journal(Protocol):
    """A durable journal: when a call returns, its row survives the death of the machine."""

    def begin(
        self,
        *,
        model: str,
        kind: str,
        request_id: str,
        from_version: str | None,
        previous_version: str | None,
        to_version: str,
    ) -> Entry:
        """Open an entry at step "intended"; PromotionConflict if that model has an open one."""

    def advance(self, entry_id: int, step: str) -> None:
        """Set the step; "done", "undone" and "superseded" close the entry."""

    def unfinished(self, model: str) -> Entry | None:
        """The open entry of that model."""
