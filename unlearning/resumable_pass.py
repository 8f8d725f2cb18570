"""The forward pass of one tower over fixed inputs, gone on with from where it got to before an edited weight.

An edit leaves everything before its stage as it was, so activations that wait before some stage serve every
later stage, too.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

A = TypeVar("A")


class Staged(Protocol[A]):
    """A tower as a sequence of stages; A: the activations that pass from stage to stage."""

    def run(self, before: A, first: int, last: int | None, micro_batch: int, /) -> A:
        """Pass activations through stages[first:last]."""


@dataclass(frozen=True)
class Entering(Generic[A]):
    """Activations that wait before a stage."""

    stage: int
    activations: A


class ResumablePass(Generic[A]):
    """The pass at weights that no longer change before the stages asked for.

    Args:
        staged: the tower.
        inputs: what enters its first stage.
        micro_batch: rows that pass together.
        first_edit: the first stage that is to be edited.  What enters it is kept until a later stage is asked
            for: from then on nobody comes back to it.
    """

    @torch.no_grad()
    def __init__(self, staged: Staged[A], inputs: A, micro_batch: int, first_edit: int = 0) -> None:
        self._staged, self._micro_batch = staged, micro_batch
        self._inputs = self._kept = Entering(0, inputs)
        self._kept = self.upto(first_edit)

    @torch.no_grad()
    def upto(self, stage: int, passed: Entering[A] | None = None) -> Entering[A]:
        """What enters a stage, from the nearest activations before it.

        Args:
            stage: 0 is the first.
            passed: activations at the same weights that may be nearer than what is kept here.
        """
        waiting = [at for at in (self._inputs, self._kept, passed) if at is not None and at.stage <= stage]
        nearest = max(waiting, key=lambda at: at.stage)
        if self._kept.stage < stage:
            self._kept = self._inputs
        entering = self._staged.run(nearest.activations, nearest.stage, stage, self._micro_batch)
        return Entering(stage, entering)
