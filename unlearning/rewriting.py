"""A matrix is rewritten so that the keys of what is to be forgotten give something else, concept by concept.

Keys, the rows that enter the matrix, are led by what is missing at its output, in damped least squares
(`unlearning.least_squares`): after unified concept editing (arXiv 2308.14761) and MEMIT (arXiv 2210.07229).
The change is a sum over the concepts of a request, each the part that its own keys ask for.  A key that is
like retained ones is led less far than it should: the weight of its concept grows until enough is made.

Shapes: F forgotten keys, d inputs and o outputs of the matrix.
"""

import torch
from torch import Tensor

from unlearning.least_squares import duals

# Of a concept's weight.  Keys that are the same as retained ones are not led apart by any weight.
DOUBLINGS = 12


def rewrite(
    gone: Tensor, wanted: Tensor, owners: Tensor, retained: Tensor, share: float, damping: float
) -> dict[int, Tensor]:
    """The change (o, d) of the matrix for every concept, at the smallest weights that make `share` of each.

    Args:
        gone: keys (F, d) that are to give something else.
        wanted: (F, o) what has to be added to what they give.
        owners: (F,) the concept each belongs to.
        retained: second moments (d, d) of the keys that are to give what they gave.
        share: of the wanted change, below 1; see `made`.
        damping: relative to the mean of the diagonal of `retained`.
    """
    weights = torch.ones(len(gone), dtype=gone.dtype, device=gone.device)
    changes: dict[int, Tensor] = {}
    for _ in range(DOUBLINGS):
        solved = duals(gone, weights / len(gone), retained, damping)
        missed = False
        for concept in sorted(set(owners.tolist())):
            own = owners == concept
            changes[concept] = wanted[own].T @ solved[own]
            if made(gone[own], wanted[own], changes[concept]) < share:
                weights[own] *= 2
                missed = True
        if not missed:
            break
    return changes


def made(keys: Tensor, wanted: Tensor, change: Tensor) -> float:
    """Share of the wanted changes that a change of the matrix makes: 1 - |what is left|^2 / |wanted|^2."""
    return 1.0 - energy(keys @ change.T - wanted) / energy(wanted)


def energy(rows: Tensor) -> float:
    """Mean squared length of the rows."""
    return float(rows.square().sum(dim=1).mean())
