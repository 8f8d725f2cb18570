"""Unlearn: search the step, edit, and write the candidate's weights."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Candidate, ModelHandle, Plan
from tasks.profiling import ProfileHandle
from tasks.progress import bar
from tasks.run import Run


@task(name="unlearn", cache_policy=NO_CACHE)
def unlearn(run: Run, plan: Plan, base: ModelHandle, profiled: ProfileHandle) -> Candidate:
    """The edited model in the run folder, with its manifest and the trace of the search.

    Raises:
        ModelError: no layer can be stepped, or every step breaks the model.
    """
    from evidence.manifest import write_manifest
    from evidence.schema import WEIGHTS_NAME
    from tasks.families import family_tasks, load
    from unlearning import methods
    from unlearning.determinism import deterministic
    from unlearning.gradients import load_gradients
    from unlearning.request import Profile

    with deterministic(plan.seed, plan.threads), bar("unlearn") as tell:
        model = load(base.family, Path(base.folder), plan.device)
        inputs = family_tasks(base.family).request(plan, Path(run.folder), model)
        taken = Profile(profiled.scores, load_gradients(run.path(profiled.gradients), plan.device))
        outcome = methods.edit(model, inputs, plan.method, taken, tell)
        folder = run.path("candidate")
        digests = model.save(folder)
    write_manifest(folder)
    return Candidate(
        folder=str(folder),
        weights_sha256=digests[WEIGHTS_NAME],
        edits=outcome.edits,
        reached_target=outcome.reached_target,
        trials=outcome.trials,
        curve=outcome.curve,
    )
