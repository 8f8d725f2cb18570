"""The graph that autograd records of a forward pass, read without differentiating it."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor


def nodes(outcomes: Collection[Tensor]) -> Iterator[Any]:
    """Every operation on the way from leaves to the outcomes, once; none where there is no graph."""
    seen, waiting = set(), [outcome.grad_fn for outcome in outcomes]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(child for child, _ in node.next_functions)


def reached(outcomes: Collection[Tensor], weights: Mapping[str, Tensor]) -> set[str]:
    """Names of the weights, requiring gradients, that the outcomes were computed from.

    Those that `torch.autograd.grad` finds, without the memory of their gradients.
    """
    leaves = {id(leaf) for node in nodes(outcomes) if (leaf := getattr(node, "variable", None)) is not None}
    return {name for name, weight in weights.items() if id(weight) in leaves}
