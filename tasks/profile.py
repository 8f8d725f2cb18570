"""Profile the layers: forget and retain gradients, importance, alignment, Pareto fronts."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import ModelHandle, Plan
from tasks.profile_together import profile_together
from tasks.profiling import ProfileHandle, take_profile
from tasks.progress import bar
from tasks.run import Run


@task(name="profile", cache_policy=NO_CACHE)
def profile(run: Run, plan: Plan, base: ModelHandle) -> ProfileHandle:
    """Score every candidate layer for every target.

    Raises:
        ModelError: weights or gradients are not usable.
        SetError, DigestMismatch: an image is.
    """
    with bar("profile") as tell:
        if plan.processes > 1:
            return profile_together(run, plan, base, tell)
        return take_profile(run, plan, base, plan.device, plan.threads, tell)
