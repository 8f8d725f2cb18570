"""A run's result on disk, so that asking again shows it instead of doing it again."""

import json
from typing import Any

from contracts.canonical import canonical_bytes
from contracts.errors import EvidenceError
from contracts.values import RunResult
from contracts.whole_files import written_whole
from intake.workspace import Workspace
from tasks.run import OUTCOMES
from tasks.stores import open_ledger

RESULT = "result.json"


def keep_result(workspace: Workspace, result: RunResult) -> None:
    """Write the result beside the certificate, whole or not at all."""
    folder = workspace.evidence / result.request
    with written_whole(folder / RESULT) as partial:
        partial.write_bytes(canonical_bytes(result))


def decided_result(workspace: Workspace, request_id: str) -> dict[str, Any] | None:
    """The result of a request, None if it is not decided.

    Raises:
        InputError: there is no such request.
        EvidenceError: it is decided, but its result is not in this workspace.
        StoreUnreachable: the ledger does not answer.
    """
    if open_ledger(workspace).get(request_id).state not in OUTCOMES.values():
        return None
    try:
        text = (workspace.evidence / request_id / RESULT).read_text(encoding="utf-8")
    except OSError:
        raise EvidenceError(
            f"request {request_id} is decided, but its result is not in this workspace"
        ) from None
    result: dict[str, Any] = json.loads(text)
    return result
