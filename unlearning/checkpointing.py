"""Activation checkpointing whose saved tensors can be looked at more than once.

A block keeps its input and, of every tensor that its operations would save for the backward pass, a
number.  When the first of them is asked for, the block runs again and all of them are there, each until
the operation that saved it is done: one more forward pass for the memory of one block instead of all.

`torch.utils.checkpoint` hands every saved tensor out once, to the operation itself.  Second moments
(`unlearning.moments`) read what entered an operation just before it is differentiated, which makes two.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@contextmanager
def checkpointed(net: Any) -> Iterator[None]:
    """Residual blocks of both towers, and the stem of a ResNet, keep nothing but their input inside.

    A graph made inside can be differentiated after the end, too.
    """
    methods = [(block, "forward") for block in _blocks(net)]
    if hasattr(net.visual, "stem"):
        methods.append((net.visual, "stem"))
    for module, name in methods:
        setattr(module, name, partial(_call, getattr(module, name)))
    try:
        yield
    finally:
        for module, name in methods:
            delattr(module, name)  # the class's own method comes back


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """What a tower stacks: the outermost elements of its lists and sequences."""
    for child in module.children():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            yield child
        else:
            yield from _blocks(child)


def _call(run: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return run(*args, **options)
    call = _Call(run, args, options)
    with saved_tensors_hooks(call.save, _Saved.tensor):
        return run(*args, **options)


class _Saved:
    """Stands for a tensor that an operation saved; goes when the operation has been differentiated."""

    def __init__(self, call: "_Call") -> None:
        self._call = call
        self.value: Tensor | None = None

    def tensor(self) -> Tensor:
        if self.value is None:
            self._call.again()
        assert self.value is not None
        return self.value


class _Call:
    """One call of a block: how to make it again, and what stands for the tensors that it saved, in order."""

    def __init__(self, run: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        self._run, self._args, self._options = run, args, options
        self._saved: list[ref[_Saved]] = []
        (self._device,) = {a.device.type for a in args if isinstance(a, Tensor)}
        # The backward pass runs outside of the autocast, and perhaps in a thread of its own.
        self._dtype = torch.get_autocast_dtype(self._device)
        self._is_rounded = torch.is_autocast_enabled(self._device)

    def save(self, tensor: Tensor) -> _Saved:
        saved = _Saved(self)
        self._saved.append(ref(saved))
        return saved

    def again(self) -> None:
        """Fill in whatever is still wanted.  `eval()` mode draws nothing at random, so it is as before."""
        places = iter(self._saved)

        def fill(tensor: Tensor) -> None:
            saved = next(places)()
            if saved is not None:
                # The graph of this run is for nothing: without it, it is gone at the end.
                saved.value = tensor.detach()

        with (
            torch.enable_grad(),
            torch.autocast(self._device, self._dtype, self._is_rounded),
            saved_tensors_hooks(fill, _never),
        ):
            self._run(*self._args, **self._options)


def _never(_: object) -> Tensor:
    raise AssertionError("the graph of a second run is not differentiated")
