"""Profile the layers: forget and retain gradients, importance, alignment, Pareto fronts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import LayerScore, ModelHandle, Plan
from tasks.progress import bar
from tasks.run import Run

GRADIENTS = "gradients.safetensors"


@dataclass(frozen=True)
class ProfileHandle:
    """Layer scores by concept, and where in the run folder the front layers' forget gradients lie.

    The gradients are personal data: they never leave the run folder, which goes with the run.
    """

    scores: Mapping[str, tuple[LayerScore, ...]]
    gradients: str


@task(name="profile", cache_policy=NO_CACHE)
def profile(run: Run, plan: Plan, base: ModelHandle) -> ProfileHandle:
    """Score every candidate layer for every target.

    Raises:
        ModelError: weights or gradients are not usable.
        SetError, DigestMismatch: an image is.
    """
    from tasks.families import family_tasks, load
    from unlearning import methods
    from unlearning.determinism import deterministic
    from unlearning.gradients import save_gradients

    with deterministic(plan.seed, plan.threads), bar("profile") as tell:
        model = load(base.family, Path(base.folder), plan.device)
        inputs = family_tasks(base.family).profile_request(run, plan, model, tell)
        found = methods.profile(model, inputs, plan.method, tell)
        save_gradients(found.directions, run.path(GRADIENTS))
    return ProfileHandle(found.scores, GRADIENTS)
