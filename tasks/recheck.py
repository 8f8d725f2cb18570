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
from contracts.errors import DigestMismatch, InputError, SetError
from contracts.values import Measurements, Plan, Rate, Verdict, promises
from tasks.house import repository, rules
from tasks.machine import device, threads
from tasks.plan import labels_sha256
from tasks.run import Run
from tasks.stores import open_ledger, open_registry

if TYPE_CHECKING:
    from intake.requests import Request
    from unlearning.families import Editable

EARLIER = "earlier"  # in a run folder: holdouts of earlier requests


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


def worst_of(requests: Iterable[Request], model: Editable, run: Run, shown: Path) -> dict[str, Rate]:
    """What of earlier erasures is known best: `earlier.<metric>.after` (`contracts.metrics`).

    Only figures count that an erasure gate of the request bounded: a style that is one of eight was never
    promised to be out of the first five.

    Args:
        requests: that were carried out, with plans and verdicts.
        model: that is to have forgotten them.
        run: in whose folder holdouts and labels are put, each once.
        shown: where the sets are that the edit saw.

    Raises:
        SetError: an earlier holdout shows what this run's edit has seen.
        StoreUnreachable: the bytes of a holdout are not there any more.
        DigestMismatch: its labels are not those of then.
    """
    worst: dict[str, Rate] = {}
    for request in requests:
        plan, verdict = from_plain(Plan, request.plan), from_plain(Verdict, request.evidence.verdict)
        folder = _fetched(plan, run.path(EARLIER))
        _check_unseen(plan, folder, shown)
        rates = _measured(plan, model, folder).rates
        for name in (gated.removesuffix(".upper95") for gated in promises(verdict)):
            key = name.replace("forget.", "earlier.", 1)
            if name in rates and (key not in worst or rates[name].upper95 > worst[key].upper95):
                worst[key] = rates[name]
    return worst


def _check_unseen(plan: Plan, folder: Path, shown: Path) -> None:
    """Refuse a holdout of then whose drawings the sets of today's edit show."""
    from data.layout import read_items

    held = read_items(folder / "holdout")
    held = held[held[plan.axis].isin(plan.targets)]
    for role in ("forget", "retain", "search"):
        shared = held[held["source"].isin(read_items(shown / role)["source"])]
        if len(shared):
            item = shared["id"].iloc[0]
            raise SetError(f"item {item}, which decided {plan.request_id}, shows a drawing of the {role} set")


def _standing(request: Request, champion: str, net: Editable, folder: Path) -> Standing:
    plan, verdict = from_plain(Plan, request.plan), from_plain(Verdict, request.evidence.verdict)
    measured = _measured(plan, net, _fetched(plan, folder))
    return Standing(plan.request_id, champion, _gates_hold(verdict, measured), measured.rates)


def _fetched(plan: Plan, folder: Path) -> Path:
    """Holdout and labels of a request, in a folder that requests with the same ones have in common."""
    from data.pins import PinnedRepo

    repo, holdout = repository(), plan.set("holdout")
    own = folder / digest([holdout.revision, holdout.path, plan.labels_sha256])[:16]
    if not own.exists():
        with PinnedRepo(repo, holdout.revision) as pinned:
            pinned.fetch_path(rules(repo, plan.model, plan.axis).labels, own / "labels")
            pinned.fetch_set(holdout, own / "holdout")
    found = labels_sha256(own / "labels")
    if found != plan.labels_sha256:
        raise DigestMismatch(
            f"the labels of {plan.request_id} have sha256 {found}, planned were {plan.labels_sha256}"
        )
    return own


def _measured(plan: Plan, model: Editable, folder: Path) -> Measurements:
    """The rates of a request's erasure gates, on its own holdout."""
    from tasks.families import family_tasks
    from unlearning.determinism import deterministic

    with deterministic(plan.seed, threads()):
        return family_tasks(model.family).forgotten(plan, folder, model)


def _gates_hold(verdict: Verdict, measured: Measurements) -> bool:
    """The bounds that were promised then, not those of today's gate file."""
    from gates.columns import flatten

    figures = flatten(measured)
    held = []
    for metric, maximum in promises(verdict).items():
        figure = figures.get(metric)
        if figure is None:
            raise InputError(f"a re-check cannot measure the erasure gate on {metric} again")
        held.append(figure <= maximum)
    return all(held)
