"""Temporary changes to a model, undone exactly, also when an exception passes through.

SLUG's reference code copies the whole model for every tried step; only one tensor changes, so
it is changed in place and put back, bit for bit.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def requiring_grad(net: nn.Module, layers: Container[str]) -> Iterator[None]:
    """Only the parameters named in `layers` require gradients inside; flags are restored after.

    Gradients are meant to be taken with `torch.autograd.grad` or `accumulation.GradientSum`, which leave
    nothing in `.grad` that could accumulate from one call to the next.
    """
    before = [(p, p.requires_grad) for p in net.parameters()]
    try:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name in layers)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@contextmanager
def edited(parameters: Mapping[str, nn.Parameter], updates: Mapping[str, Tensor]) -> Iterator[None]:
    """weight + update inside, for every named tensor; bit-equal originals after."""
    saved = {name: parameters[name].detach().clone() for name in updates}
    try:
        apply(parameters, updates)
        yield
    finally:
        with torch.no_grad():
            for name, original in saved.items():
                parameters[name].copy_(original)


def apply(parameters: Mapping[str, nn.Parameter], updates: Mapping[str, Tensor]) -> None:
    """weight += update, for every named tensor.  Search and final edit both come here: same bits."""
    with torch.no_grad():
        for name, update in updates.items():
            parameters[name].add_(update)
