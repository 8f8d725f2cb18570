"""The life of one run: claimed in the ledger, a private folder on disk, and an end that is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.canonical import from_plain
from contracts.values import Axis, Decision, Plan
from intake.workspace import Workspace
from tasks.stores import open_ledger, open_registry

if TYPE_CHECKING:
    from intake.claims import Claim

OUTCOMES: Mapping[Decision, Any] = {
    "passed": "passed",
    "failed": "failed",
    "insufficient evidence": "insufficient",
}


@dataclass(frozen=True)
class Run:
    """What every task of one run is handed: opaque ids and paths only.

    `plan` is the plan of an earlier attempt that was interrupted: it binds, so that a second attempt
    does the same work against the same base version and finds what the first one left.
    """

    request_id: str
    model: str
    axis: Axis
    targets: tuple[str, ...]
    forget_set: str
    revision: str | None
    options: Mapping[str, Any]
    home: str
    folder: str
    plan: Plan | None

    @property
    def workspace(self) -> Workspace:
        """The workspace the run belongs to."""
        return Workspace.open(Path(self.home))

    def path(self, name: str) -> Path:
        """A path inside the run folder."""
        return Path(self.folder) / name


class Running:
    """The claim of a running request; `run` is the value that tasks get."""

    def __init__(self, run: Run, claim: Claim) -> None:
        self.run = run
        self._claim = claim

    def bind(self, plan: Plan) -> None:
        """Make the plan durable before anything is computed from it."""
        self._claim.bind_plan(plan)

    def heartbeat(self) -> None:
        """Tell other machines that the run is alive."""
        self._claim.heartbeat()

    def finish(self, decision: Decision, **evidence: Any) -> None:
        """Record the verdict and what the run left."""
        from intake.requests import Evidence

        self._claim.finish(OUTCOMES[decision], Evidence(**evidence))


@contextlib.contextmanager
def claimed(request_id: str) -> Iterator[Running]:
    """Claim a request and open its run folder; both end with the block, whatever happens inside.

    The plan of an interrupted attempt binds as soon as a version stands for it that is, or can still become,
    the champion.  Else it is released: the champion or the house's rules may have moved on since.

    Raises:
        InputError: there is no such request.
        RequestBusy: it is running elsewhere, or is decided.
        StoreUnreachable: the ledger does not answer.
    """
    workspace = Workspace.open()
    workspace.sweep_stale_runs()
    with open_ledger(workspace).claim(request_id) as claim, workspace.run_folder(request_id) as folder:
        bound = claim.request.plan
        if bound is not None and not _binds(workspace, from_plain(Plan, bound)):
            claim.release_plan()
        request = claim.request
        run = Run(
            request_id=request.id,
            model=request.model,
            axis=request.axis,
            targets=request.targets,
            forget_set=request.forget_set,
            revision=request.revision,
            options=request.options,
            home=str(workspace.home),
            folder=str(folder),
            plan=None if request.plan is None else from_plain(Plan, request.plan),
        )
        yield Running(run, claim)


def _binds(workspace: Workspace, plan: Plan) -> bool:
    from registry.soundness import erased_by
    from registry.versions import CHAMPION

    registry = open_registry(workspace)
    if registry.find_version(plan.model, plan.request_id, plan.sha256) is None:
        return False
    champion = registry.describe(plan.model, CHAMPION)
    return champion.version == plan.base_version or plan.request_id in erased_by(registry, champion)
