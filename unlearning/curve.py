"""Forgetting and retained accuracy along a chosen change."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from torch import Tensor

from unlearning.families import Split, View
from unlearning.forgetting import Forgetting
from unlearning.inplace import edited
from unlearning.request import Progress

CURVE_MULTIPLES = (0.0, 0.5, 1.0, 1.5, 2.0)


def measured_curve(
    split: Split,
    view: View,
    targets: Sequence[int],
    updates: Callable[[float], Mapping[str, Tensor]],
    progress: Progress,
    known: Collection[float] = (),
) -> Iterator[tuple[float, Forgetting, float]]:
    """How well targets are known, and TA@1 of the rest, at `CURVE_MULTIPLES` of a change.

    Without a change every feature is known already.  A multiple at which features are not finite is
    left out.

    Args:
        split: what is measured on.
        view: the split, ready for edits of the tensors that change.
        targets: classes.
        updates: what a multiple adds to which tensors.
        progress: hears of every multiple.
        known: multiples to leave out.
    """
    for done, multiple in enumerate(CURVE_MULTIPLES, start=1):
        if multiple not in known:
            with edited(split.model.parameters, updates(multiple)):
                seen = (view if multiple else split.view({})).both(targets)
            if seen is not None:
                yield multiple, *seen
        progress("curve", done, len(CURVE_MULTIPLES))
