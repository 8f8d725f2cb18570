"""The map of an erasure by its definition, for tests; what is edited folds it into a layer."""

from torch import Tensor

from unlearning.leace import Erasure


def mapped(erasure: Erasure, x: Tensor) -> Tensor:
    """What the map makes of x (..., d), in the type of x."""
    x64 = x.double()
    return (x64 - (x64 - erasure.centre) @ erasure.right.T @ erasure.left.T).to(x.dtype)
