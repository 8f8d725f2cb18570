"""Alias moves by hand, and what a killed process left of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from intake.workspace import Workspace
from tasks.publish import loads
from tasks.stores import open_promoter, open_registry

if TYPE_CHECKING:
    from registry.promotion import PromotionRecord


@task(name="promote", cache_policy=NO_CACHE)
def promote_version(
    model: str, version: str, expect_champion: str, allow_reinstating: bool
) -> PromotionRecord:
    """Make a certified version the champion; see `registry.promotion.Promoter.promote`."""
    workspace = Workspace.open()
    with workspace.run_folder("alias-move") as scratch:
        return open_promoter(workspace).promote(
            model,
            version,
            expect_champion=expect_champion,
            scratch=scratch,
            check=loads,
            allow_reinstating=allow_reinstating,
        )


@task(name="rollback", cache_policy=NO_CACHE)
def roll_back(model: str, expect_champion: str, allow_reinstating: bool) -> PromotionRecord:
    """Make the previous champion the champion again; see `registry.promotion.Promoter.rollback`."""
    workspace = Workspace.open()
    with workspace.run_folder("alias-move") as scratch:
        return open_promoter(workspace).rollback(
            model,
            expect_champion=expect_champion,
            scratch=scratch,
            check=loads,
            allow_reinstating=allow_reinstating,
        )


@task(name="reconcile", cache_policy=NO_CACHE)
def reconcile(model: str) -> PromotionRecord | None:
    """Finish or close an alias move that a killed process left.

    Raises:
        InputError: there is no such model.
    """
    workspace = Workspace.open()
    open_registry(workspace).aliases(model)  # an unknown model has nothing to finish, and nobody would notice
    return open_promoter(workspace).reconcile(model)
