"""Re-check: is what was erased so far still gone, from the present champion or from a candidate?

A later edit, a fine-tune or a roll-back can bring a concept back; a certificate cannot notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.canonical import digest, from_plain
from contracts.errors import InputError
from contracts.values import Measurements, Plan, Rate, Verdict
from tasks.house import repository, rules
from tasks.plan import device, threads
from tasks.stores import open_ledger, open_registry

if TYPE_CHECKING:
    from intake.requests import Request
    from unlearning.families import Editable


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
    from tasks.families import load

    workspace = Workspace.open()
    passed = [r for r in open_ledger(workspace).list(model, ("passed",)) if r.plan is not None]
    if not passed:
        return ()
    with workspace.run_folder("recheck") as folder:
        champion = open_registry(workspace).pull(model, "champion", folder / "champion")
        net = load(champion.family, Path(champion.folder), device())
        return tuple(_standing(r, champion.version, net, folder) for r in passed)


def worst_of(requests: Iterable[Request], model: Editable, folder: Path) -> dict[str, Rate]:
    """What of earlier erasures is known best: `earlier.<metric>.after` (`contracts.metrics`).

    Args:
        requests: that were carried out, with their plans.
        model: that is to have forgotten them.
        folder: where holdouts and labels are put, each once.

    Raises:
        StoreUnreachable: the bytes of a holdout are not there any more.
    """
    worst: dict[str, Rate] = {}
    for request in requests:
        found = _measured(from_plain(Plan, request.plan), model, folder)
        for name, rate in found.rates.items():
            key = name.replace("forget.", "earlier.", 1)
            if key not in worst or rate.upper95 > worst[key].upper95:
                worst[key] = rate
    return worst


def _standing(request: Request, champion: str, net: Editable, folder: Path) -> Standing:
    plan, verdict = from_plain(Plan, request.plan), from_plain(Verdict, request.evidence.verdict)
    measured = _measured(plan, net, folder)
    return Standing(plan.request_id, champion, _gates_hold(verdict, measured), measured.rates)


def _measured(plan: Plan, model: Editable, folder: Path) -> Measurements:
    """The rates of a request's erasure gates, on its own holdout, which is fetched if it is not there."""
    from data.pins import PinnedRepo
    from tasks.families import family_tasks
    from unlearning.determinism import deterministic

    repo, holdout = repository(), plan.set("holdout")
    labels = rules(repo, plan.model, plan.axis).labels
    # Requests mostly have the holdout in common.
    own = folder / digest([holdout.revision, holdout.path, labels])[:16]
    if not own.exists():
        with PinnedRepo(repo, holdout.revision) as pinned:
            pinned.fetch_path(labels, own / "labels")
            pinned.fetch_set(holdout, own / "holdout")
    with deterministic(plan.seed, threads()):
        return family_tasks(model.family).forgotten(plan, own, model)


def _gates_hold(verdict: Verdict, measured: Measurements) -> bool:
    """The bounds that were promised then, not those of today's gate file."""
    from gates.columns import flatten

    figures = flatten(measured)
    held = []
    for gate in verdict.gates:
        if gate.kind != "erasure" or not gate.metric.startswith("forget."):  # earlier ones have their own
            continue
        figure = figures.get(gate.metric)
        if figure is None or gate.maximum is None:
            raise InputError(f"a re-check cannot measure the erasure gate {gate.gate!r} again")
        held.append(figure <= gate.maximum)
    return all(held)
