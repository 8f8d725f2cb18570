"""From the sets in the run folder to what the method takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from contracts.values import OTHER_AXIS, Axis, Plan
from data.reader import load_images
from tasks.plan import read_labels
from tasks.selection import select

if TYPE_CHECKING:
    from unlearning.request import UnlearnInputs


@dataclass(frozen=True)
class Classes:
    """The zero-shot task of one axis: C opaque ids, their names, and templates with one {} each."""

    ids: tuple[str, ...]
    names: tuple[str, ...]
    known: frozenset[str]
    templates: tuple[str, ...]

    def place(self, label: str) -> int:
        """Index of a class id."""
        return self.ids.index(label)


def read_classes(folder: Path, axis: Axis) -> Classes:
    """The classes of an axis, from the labels in the run folder."""
    labels = read_labels(folder / "labels")
    labels = labels[labels["axis"] == axis]
    templates = json.loads((folder / "labels" / "templates.json").read_text(encoding="utf-8"))
    return Classes(
        ids=tuple(labels["id"]),
        names=tuple(labels["name"]),
        known=frozenset(labels.loc[labels["seen"], "id"]),
        templates=tuple(templates[axis]),
    )


def known_by_axis(folder: Path) -> dict[Axis, frozenset[str]]:
    """What the model was trained on, by axis."""
    return {axis: read_classes(folder, axis).known for axis in OTHER_AXIS}


def unlearn_inputs(plan: Plan, folder: Path, size: int) -> UnlearnInputs:
    """Images, captions and labels of forget, retain and search set, at `size` pixels.

    Raises:
        SetError, DigestMismatch: an image is missing, changed or not decodable.
    """
    from unlearning.request import UnlearnInputs

    classes = read_classes(folder, plan.axis)
    parts = select(plan, folder, known_by_axis(folder))
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
