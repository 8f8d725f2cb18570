"""The stores of a workspace, opened: ledger, registry, promoter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from intake.workspace import Workspace

if TYPE_CHECKING:
    from intake.ledger import Ledger
    from registry.promotion import Promoter
    from registry.store import Registry


def open_ledger(workspace: Workspace) -> Ledger:
    """The request ledger.

    Raises:
        StoreUnreachable: it does not answer.
    """
    from intake.ledger import Ledger

    return Ledger(workspace.ledger_url, workspace.locks)


def open_registry(workspace: Workspace) -> Registry:
    """The MLflow registry; connects on first use."""
    from registry.store import Registry

    return Registry(workspace.tracking_uri, workspace.home)


def open_promoter(workspace: Workspace) -> Promoter:
    """What moves aliases: the registry, the journal beside the ledger, and a lock all promoters share."""
    from intake.journal import PromotionJournal
    from intake.locks import model_lock
    from registry.promotion import Promoter

    ledger = open_ledger(workspace)

    return Promoter(
        open_registry(workspace),
        PromotionJournal(ledger.engine),
        lambda model: model_lock(workspace.ledger_url, workspace.locks, model),
    )
