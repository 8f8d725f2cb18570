"""CLIP: zero-shot classification over the labels of one axis, measured in both directions of retrieval."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import ModelError
from contracts.values import Measurements, Plan, Tower
from tasks.families import Measured, clip_measure
from tasks.families.clip_inputs import read_classes, unlearn_inputs
from tasks.families.clip_retain_cache import known_retain

if TYPE_CHECKING:
    from tasks.progress import Tell
    from tasks.run import Run
    from unlearning.families.clip import ClipModel
    from unlearning.request import UnlearnInputs


def request(plan: Plan, folder: Path, model: ClipModel) -> UnlearnInputs:
    """See `tasks.families.FamilyTasks`."""
    return unlearn_inputs(plan, folder, model.image_size)


def profile_request(run: Run, plan: Plan, model: ClipModel, tell: Tell) -> UnlearnInputs:
    """See `tasks.families.FamilyTasks`."""
    inputs = request(plan, Path(run.folder), model)
    return replace(inputs, known_retain=known_retain(run, plan, model, tell))


def measured(
    plan: Plan, folder: Path, original: ClipModel, edited: ClipModel, towers: Collection[Tower]
) -> Measured:
    """See `tasks.families.FamilyTasks`; what is shown are a few retrievals, in ids."""
    return clip_measure.measured(plan, folder, original, edited, towers)


def forgotten(plan: Plan, folder: Path, model: ClipModel) -> Measurements:
    """See `tasks.families.FamilyTasks`: FA@1 and FA@5."""
    import torch

    from contracts.metrics import DEPTHS
    from data.layout import read_items
    from data.reader import load_images
    from gates.intervals import rate
    from unlearning.zero_shot import class_embeddings, classification_ranks

    classes = read_classes(folder, plan.axis)
    items = read_items(folder / "holdout")
    items = items[items[plan.axis].isin(plan.targets)]
    images = model.encode_images(load_images(folder / "holdout", items, model.image_size))
    scores = (images @ class_embeddings(model, classes.names, classes.templates).T).cpu()
    labels = torch.tensor([classes.place(label) for label in items[plan.axis]])
    ranks = classification_ranks(scores, labels, "best").numpy()
    clusters = items["source"].to_numpy(dtype=str)
    return Measurements({f"forget.fa{k}.after": rate(ranks <= k, clusters) for k in DEPTHS}, drops={})


def exhibits(run: Run, plan: Plan, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """See `tasks.families.FamilyTasks`: first answers to a few held-out queries, with their pictures."""
    from tasks.families.clip_retrievals import retrievals

    return {"retrievals": retrievals(run, plan, shown)}


def check(model: ClipModel) -> None:
    """See `tasks.families.FamilyTasks`."""
    import torch

    if not torch.isfinite(model.encode_texts(["a picture"])).all():
        raise ModelError("the model gives features that are not finite")
