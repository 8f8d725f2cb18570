"""From the sets in the run folder to what the method takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contracts.errors import SetError
from contracts.values import OTHER_AXIS, Axis, Plan
from data.reader import load_images
from tasks.families.clip_selection import select
from tasks.plan import LABELS_FILE, read_labels

if TYPE_CHECKING:
    from unlearning.request import UnlearnInputs

TEMPLATES_FILE = "templates.json"


@dataclass(frozen=True)
class Classes:
    """The zero-shot task of one axis: C opaque ids, their names, and templates with one {} each."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    known: frozenset[str]
    templates: tuple[str, ...]

    def place(self, label: str) -> int:
        """Index of a class id.

        Raises:
            SetError: an item is labelled with what is no class of this axis.
        """
        if label not in self.ids:
            raise SetError(f"an item has the label {label!r}, which {LABELS_FILE} does not hold on its axis")
        return self.ids.index(label)


def read_classes(folder: Path, axis: Axis) -> Classes:
    """The classes of an axis, from the labels in the run folder.

    Raises:
        SetError: the labels are malformed, or there are no templates for the axis.
    """
    labels = read_labels(folder / "labels")
    labels = labels[labels["axis"] == axis]
    try:
        templates = json.loads((folder / "labels" / TEMPLATES_FILE).read_text(encoding="utf-8"))[axis]
    except (OSError, ValueError, TypeError, KeyError):
        raise SetError(f"labels: {TEMPLATES_FILE} has no templates for axis {axis!r}") from None
    return Classes(
        ids=tuple(labels["id"]),
        names=tuple(labels["name"]),
        known=frozenset(labels.loc[labels["seen"], "id"]),
        templates=tuple(templates),
    )


def classes_by_axis(plan: Plan, folder: Path) -> dict[Axis, Classes]:
    """The classes of the plan's axis, and of the other one where the plan has a set that shows it."""
    crossed = any(ref.role == "cross" for ref in plan.sets)
    axes = (plan.axis, OTHER_AXIS[plan.axis]) if crossed else (plan.axis,)
    return {axis: read_classes(folder, axis) for axis in axes}


def unlearn_inputs(plan: Plan, folder: Path, size: int) -> UnlearnInputs:
    """Images, captions and labels of forget, retain and search set, at `size` pixels.

    Raises:
        SetError, DigestMismatch: an image is missing, changed or not decodable.
    """
    from unlearning.request import UnlearnInputs

    by_axis = classes_by_axis(plan, folder)
    classes = by_axis[plan.axis]
    parts = select(plan, folder, {axis: its.known for axis, its in by_axis.items()})
    index = {label: i for i, label in enumerate(classes.ids)}

    def labels_of(rows: object) -> np.ndarray:
        return np.array([index[label] for label in rows], dtype=np.int64)  # type: ignore[attr-defined]

    return UnlearnInputs(
        class_ids=classes.ids,
        class_names=classes.names,
        templates=classes.templates[: plan.method.search_templates],
        targets=tuple(index[t] for t in plan.targets),
        forget_images=load_images(folder / "forget", parts.forget_set, size),
        forget_captions=tuple(parts.forget_set["caption"]),
        forget_labels=labels_of(parts.forget_set[plan.axis]),
        retain_images=load_images(folder / "retain", parts.retain_set, size),
        retain_captions=tuple(parts.retain_set["caption"]),
        search_images=load_images(folder / "search", parts.search, size),
        search_labels=labels_of(parts.search[plan.axis]),
        seed=plan.seed,
    )
