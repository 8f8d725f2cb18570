"""Which layer: importance, alignment and the Pareto front of SLUG (arXiv 2407.11867, section 3.2)."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from contracts.values import LayerScore
from unlearning.families import CandidateLayer

# The reference implementation's guard against tiny gradients in the cosine.
ALIGNMENT_EPS = 1e-6


def score_layers(
    candidates: Sequence[CandidateLayer],
    weights: Mapping[str, Tensor],
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor],
    alignment: Literal["absolute", "signed"] = "absolute",
) -> tuple[LayerScore, ...]:
    """Score every candidate and mark the Pareto front of each tower.

    importance = ||g_f|| / ||w|| (eq. 5); alignment = |cos(g_f, g_r)|.  The paper prints the signed
    cosine; the released code and the figures take its absolute value, and so do we unless told: a
    signed one prefers the layers where forgetting conflicts most with retaining.

    A layer with a zero forget gradient cannot be stepped along it, and a layer with zero weights has
    no relative step size.  Both get importance 0, never enter a front and push nobody off it.

    Args:
        candidates: the layers to score; the result keeps their order.
        weights: weight of each candidate.
        forget: gradient of the forget loss, of the weight's shape.
        retain: gradient of the retain loss, of the weight's shape.
        alignment: whether the cosine's sign is dropped.
    """
    measured = [_measure(weights[c.name], forget[c.name], retain[c.name]) for c in candidates]
    if alignment == "absolute":
        measured = [(importance, abs(cosine)) for importance, cosine in measured]
    front: set[str] = set()
    for tower in sorted({c.tower for c in candidates}):
        members = [
            (c.name, *m) for c, m in zip(candidates, measured, strict=True) if c.tower == tower and m[0] > 0
        ]
        kept = pareto_front([m[1] for m in members], [m[2] for m in members])
        front.update(member[0] for member, keep in zip(members, kept, strict=True) if keep)
    return tuple(
        LayerScore(c.name, c.tower, c.n_params, importance, aligned, c.name in front)
        for c, (importance, aligned) in zip(candidates, measured, strict=True)
    )


def pareto_front(importance: Sequence[float], alignment: Sequence[float]) -> list[bool]:
    """The weak Pareto front (Algorithm 2): which entries are kept.

    An entry is dropped only if another one has strictly larger importance *and* strictly smaller
    alignment; ties never drop anybody.  O(n log n): entries are visited from the most important down,
    carrying the smallest alignment among the strictly more important ones.
    """
    kept = [True] * len(importance)
    order = sorted(range(len(importance)), key=lambda i: -importance[i])
    smallest_above = smallest_here = float("inf")
    level = None
    for i in order:
        if importance[i] != level:
            level, smallest_above = importance[i], smallest_here
        kept[i] = alignment[i] <= smallest_above
        smallest_here = min(smallest_here, alignment[i])
    return kept


def _measure(weight: Tensor, forget: Tensor, retain: Tensor) -> tuple[float, float]:
    """Importance and cos(g_f, g_r), in fp64: norms of millions of small squares."""
    w, f, r = (t.detach().double().flatten() for t in (weight, forget, retain))
    w_norm, f_norm = float(torch.linalg.vector_norm(w)), float(torch.linalg.vector_norm(f))
    if w_norm == 0.0 or f_norm == 0.0:
        return 0.0, 0.0
    return f_norm / w_norm, float(functional.cosine_similarity(f, r, dim=0, eps=ALIGNMENT_EPS))
