"""Flows `promote` and `rollback`: moving the champion by hand, under the same lock and checks."""

from typing import Any

from prefect import flow

from contracts.canonical import to_plain
from tasks.aliases import promote_version, roll_back


@flow(name="promote", log_prints=False)
def promote(
    model: str, version: str, expect_champion: str, allow_reinstating: bool = False
) -> dict[str, Any]:
    """Make a certified version the champion.

    Args:
        model: registered model.
        version: the version that shall be champion.
        expect_champion: the champion that the decision was made against.
        allow_reinstating: accept that concepts erased in the champion live again.

    Raises:
        PromotionConflict: the champion is another version, or the lock is held.
        EvidenceError: the version has no valid certificate for exactly its weights.
        InputError: unknown model or version, or erased concepts would live again.
    """
    return dict(to_plain(promote_version(model, version, expect_champion, allow_reinstating)))


@flow(name="rollback", log_prints=False)
def rollback(model: str, expect_champion: str, allow_reinstating: bool = False) -> dict[str, Any]:
    """Make the previous champion the champion again; arguments and errors as for `promote`."""
    return dict(to_plain(roll_back(model, expect_champion, allow_reinstating)))
