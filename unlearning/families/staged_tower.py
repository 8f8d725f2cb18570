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

from unlearning.families.stages import Stage, Stages


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
class StagedTower(Stages[Batch]):
    """The stages of one tower; the last one leaves features of shape (n, D)."""

    def run(self, batches: Sequence[Batch], first: int, last: int | None, micro_batch: int) -> list[Batch]:
        """Pass batches through stages[first:last], `micro_batch` rows at a time; through none, shared."""
        if first == last:
            return list(batches)
        done = []
        for batch in batches:
            if len(batch.rows):
                pieces = self.passed(batch.split(micro_batch), first, last)
                own = torch.cat([piece.own for piece in pieces])
                done.append(replace(batch, own=own, prefixes=pieces[0].prefixes))
        return done

    def features(self, batches: Sequence[Batch], first: int, n_rows: int, micro_batch: int) -> Tensor:
        """Normalised features (n_rows, D) of batches that stand before stage `first`.

        Rows that no batch holds stay zero.
        """
        done = self.run(batches, first, None, micro_batch)
        out = done[0].own.new_zeros(n_rows, done[0].own.shape[-1])
        for batch in done:
            out[batch.rows] = functional.normalize(batch.own, dim=-1)
        return out


def row_stage(prefixes: tuple[str, ...], run: Callable[[Tensor], Tensor]) -> Stage[Batch]:
    """A stage that computes every row from its own activations alone."""
    return Stage(prefixes, lambda batch: replace(batch, own=run(batch.own)))
