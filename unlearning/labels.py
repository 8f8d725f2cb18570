"""Labels of a request's sets: items are of classes 0 to C - 1, some of which are targets."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracts.errors import InputError

Labels = NDArray[np.int64]


def check_labels(
    class_ids: Sequence[str],
    targets: Sequence[int],
    *,
    forget: Labels,
    search: Labels,
    retain: Labels | None = None,
) -> None:
    """Refuse sets that no request can be about.

    Args:
        class_ids: C opaque ids, which messages name.
        targets: the classes to forget.
        forget: (N_f,) of the forget items, targets alone.
        search: (N_s,) of the search items, all targets and something to keep.
        retain: (N_r,) of the retain items where they have classes, without a target.

    Raises:
        InputError: targets or labels are out of range, or contradict each other.
    """
    n, gone = len(class_ids), set(targets)
    if len(gone) != len(targets) or not gone or not _within(gone, n):
        raise InputError(f"targets must be distinct classes in 0..{n - 1}, at least one, got {targets}")
    labels = {"forget": set(forget.tolist()), "search": set(search.tolist())}
    kept = set() if retain is None else set(retain.tolist())
    for what, own in {**labels, "retain": kept}.items():
        if not _within(own, n):
            raise InputError(f"{what} labels must lie in 0..{n - 1}, got {min(own)}..{max(own)}")
    for target in targets:
        for what, own in labels.items():
            if target not in own:
                raise InputError(f"concept {class_ids[target]} has no item in the {what} set")
    if labels["forget"] - gone:
        raise InputError("the forget set has an item of a class that is not a target")
    if kept & gone:
        raise InputError("the retain set has an item of a target")
    if not labels["search"] - gone:
        raise InputError("the search set has no item of a class to keep")


def rows_of(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Where labels (N,) are of one of the classes, ascending."""
    return torch.nonzero(torch.isin(labels, torch.tensor(classes))).flatten()


def _within(classes: set[int], n: int) -> bool:
    return all(0 <= label < n for label in classes)
