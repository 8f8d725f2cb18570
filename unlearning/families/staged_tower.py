"""A tower as a sequence of stages, so that a step search re-computes only what an edit can change.

A search changes one tensor at a time and asks for the features again.  Everything before the
edited tensor stays what it was, so the activations entering its stage are kept and only the
rest of the tower runs.

Shapes: n rows, G prefixes, P tokens of a prefix, S own tokens, W tower width, D embedding width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import ModelError


@dataclass(frozen=True)
class Batch:
    """Rows that pass through a tower together.

    Attributes:
        rows: (n,) position of each row in the caller's order.
        own: (n, ...) activations of each row; for text (n, S, W), the tokens after its prefix.
        prefixes: (G, P, W) activations of the leading tokens that rows have in common (text only).
        prefix: (n,) which prefix a row begins with (text only).
    """

    rows: Tensor
    own: Tensor
    prefixes: Tensor | None = None
    prefix: Tensor | None = None

    def take(self, keep: Tensor) -> "Batch":
        """The rows where `keep` (n,) bool is true."""
        prefix = None if self.prefix is None else self.prefix[keep]
        return replace(self, rows=self.rows[keep], own=self.own[keep], prefix=prefix)

    def split(self, size: int) -> list["Batch"]:
        """The same rows in batches of at most `size`."""
        return [
            replace(
                self,
                rows=self.rows[part],
                own=self.own[part],
                prefix=None if self.prefix is None else self.prefix[part],
            )
            for part in (slice(start, start + size) for start in range(0, len(self.rows), size))
        ]


@dataclass(frozen=True)
class Stage:
    """One step of a tower: the name prefixes of the weights it uses, and what it computes."""

    prefixes: tuple[str, ...]
    run: Callable[[Batch], Batch]


@dataclass(frozen=True)
class StagedTower:
    """The stages of one tower, in order; the last one leaves features of shape (n, D)."""

    stages: tuple[Stage, ...]

    def stage_of(self, layer: str) -> int:
        """Index of the stage that uses the weight `layer`.

        Raises:
            ModelError: no stage, or more than one, uses it.
        """
        found = [i for i, stage in enumerate(self.stages) if layer.startswith(stage.prefixes)]
        if len(found) != 1:
            raise ModelError(f"{layer} belongs to {len(found)} stages of its tower, expected 1")
        return found[0]

    def run(self, batches: Sequence[Batch], first: int, last: int | None, micro_batch: int) -> list[Batch]:
        """Pass batches through stages[first:last], `micro_batch` rows at a time; through none, shared."""
        if first == last:
            return list(batches)
        return [
            self._run_one(batch, self.stages[first:last], micro_batch) for batch in batches if len(batch.rows)
        ]

    def _run_one(self, batch: Batch, stages: Sequence[Stage], micro_batch: int) -> Batch:
        pieces = []
        for piece in batch.split(micro_batch):
            for stage in stages:
                piece = stage.run(piece)
            pieces.append(piece)
        own = torch.cat([piece.own for piece in pieces])
        return replace(batch, own=own, prefixes=pieces[0].prefixes)

    def features(self, batches: Sequence[Batch], first: int, n_rows: int, micro_batch: int) -> Tensor:
        """Normalised features (n_rows, D) of batches that stand before stage `first`.

        Rows that no batch holds stay zero.
        """
        done = self.run(batches, first, None, micro_batch)
        out = done[0].own.new_zeros(n_rows, done[0].own.shape[-1])
        for batch in done:
            out[batch.rows] = functional.normalize(batch.own, dim=-1)
        return out


def row_stage(prefixes: tuple[str, ...], run: Callable[[Tensor], Tensor]) -> Stage:
    """A stage that computes every row from its own activations alone."""
    return Stage(prefixes, lambda batch: replace(batch, own=run(batch.own)))
