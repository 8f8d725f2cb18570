"""Taking the profile: what it is, and the work of the process, or of each of several, that takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.values import LayerScore, ModelHandle, Plan
from tasks.progress import Tell
from tasks.run import Run

GRADIENTS = "gradients.safetensors"


@dataclass(frozen=True)
class ProfileHandle:
    """Layer scores by concept, and where in the run folder the front layers' forget gradients lie.

    The gradients are personal data: they never leave the run folder, which goes with the run.
    """

    scores: Mapping[str, tuple[LayerScore, ...]]
    gradients: str


def take_profile(
    run: Run, plan: Plan, base: ModelHandle, device: str, threads: int, tell: Tell
) -> ProfileHandle:
    """Take the gradients and write them; of several processes that do so together, the first one writes.

    Raises:
        ModelError: weights or gradients are not usable.
        SetError, DigestMismatch: an image is.
    """
    from tasks.families import family_tasks, load
    from unlearning import distributed, methods
    from unlearning.determinism import deterministic
    from unlearning.gradients import save_gradients

    with deterministic(plan.seed, threads):
        model = load(base.family, Path(base.folder), device)
        inputs = family_tasks(base.family).profile_request(run, plan, model, tell)
        found = methods.profile(model, inputs, plan.method, tell)
        if distributed.rank() == 0:
            save_gradients(found.directions, run.path(GRADIENTS))
    return ProfileHandle(found.scores, GRADIENTS)
