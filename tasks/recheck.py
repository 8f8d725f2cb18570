"""Re-check: is what was erased so far still gone from the present champion?

A later edit, a fine-tune or a roll-back can bring a concept back; a certificate cannot notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Measurements, ModelHandle, Plan, Rate, Verdict
from tasks.house import repository, rules
from tasks.plan import device, threads
from tasks.stores import open_ledger, open_registry

if TYPE_CHECKING:
    from intake.requests import Request


@dataclass(frozen=True)
class Standing:
    """One erased request, measured on the champion: `still_gone` if every erasure gate it passed holds."""

    request_id: str
    champion: str
    still_gone: bool
    rates: Mapping[str, Rate]


@task(name="re-check", cache_policy=NO_CACHE)
def recheck(model: str) -> tuple[Standing, ...]:
    """Measure every request that passed on this model on its own holdout, with the present champion.

    Raises:
        InputError: unknown model, or an erasure gate that cannot be measured again.
        StoreUnreachable: a store does not answer.
    """
    from intake.workspace import Workspace

    workspace = Workspace.open()
    passed = [r for r in open_ledger(workspace).list(model, ("passed",)) if r.plan is not None]
    if not passed:
        return ()
    with workspace.run_folder("recheck") as folder:
        champion = open_registry(workspace).pull(model, "champion", folder / "champion")
        return tuple(_standing(r, champion, folder / r.id) for r in passed)


def _standing(request: Request, champion: ModelHandle, folder: Path) -> Standing:
    from data.pins import PinnedRepo
    from tasks.families import family_tasks, load
    from unlearning.determinism import deterministic

    repo = repository()
    plan, verdict = from_plain(Plan, request.plan), from_plain(Verdict, request.evidence.verdict)
    holdout = plan.set("holdout")
    with PinnedRepo(repo, holdout.revision) as pinned:
        pinned.fetch_set(holdout, folder / "holdout")
        pinned.fetch_path(rules(repo, plan.model, plan.axis).labels, folder / "labels")
    with deterministic(plan.seed, threads()):
        net = load(champion.family, Path(champion.folder), device())
        measured = family_tasks(champion.family).forgotten(plan, folder, net)
    return Standing(plan.request_id, champion.version, _gates_hold(verdict, measured), measured.rates)


def _gates_hold(verdict: Verdict, measured: Measurements) -> bool:
    """The bounds that were promised then, not those of today's gate file."""
    from gates.columns import flatten

    figures = flatten(measured)
    held = []
    for gate in verdict.gates:
        if gate.kind != "erasure":
            continue
        figure = figures.get(gate.metric)
        if figure is None or gate.maximum is None:
            raise InputError(f"a re-check cannot measure the erasure gate {gate.gate!r} again")
        held.append(figure <= gate.maximum)
    return all(held)
