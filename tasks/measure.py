"""Measure: what the original and the edited model say about every held-out item."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Candidate, Measurements, ModelHandle, Plan
from tasks.families import family_tasks, load
from tasks.recheck import worst_of
from tasks.rederive import shown_to_edit
from tasks.run import Run
from tasks.stores import open_ledger

OUTCOMES_FILE = "outcomes.parquet"
SHOWN_FILE = "shown.json"


@task(name="measure", cache_policy=NO_CACHE)
def measure(run: Run, plan: Plan, base: ModelHandle, candidate: Candidate) -> Measurements:
    """All rates, drops and levels, and what of earlier erasures the candidate knows.

    Item-level outcomes and what is to be shown stay in the run folder.

    Raises:
        ModelError: a model gives outputs that are not finite.
        SetError, DigestMismatch: an image is missing, changed or not decodable.
        EvidenceError: the outcomes contradict each other.
    """
    from unlearning.determinism import deterministic

    with deterministic(plan.seed, plan.threads):
        original, edited = (load(base.family, Path(m.folder), plan.device) for m in (base, candidate))
        # Re-derived, the candidate lacks what earlier edits did to towers that this one left alone.
        edits = {edit.tower for edit in candidate.edits}
        towers = edits if plan.rederived is None else set(plan.method.towers)
        found = family_tasks(base.family).measured(plan, Path(run.folder), original, edited, towers)
    found.outcomes.to_parquet(run.path(OUTCOMES_FILE), index=False)
    run.path(SHOWN_FILE).write_text(json.dumps(found.shown), encoding="utf-8")
    earlier = map(open_ledger(run.workspace).get, plan.earlier)
    carried = worst_of(earlier, edited, run, shown_to_edit(run, plan))
    return replace(found.figures, rates={**found.figures.rates, **carried})
