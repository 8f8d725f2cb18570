"""Several processes, one result: who does which items, and the sums they agree on.

Every process holds the model and is called with the same arguments; it encodes its own share of the
items, and sums are all-reduced, so that every process ends with the same gradients and takes the
same decisions after.  Without a process group all of this is the identity.

The result depends on the number of processes by rounding alone: shares are contiguous and in rank
order, and the order of collective sums is fixed by the number of processes.  gloo serves CPUs and
nccl GPUs, with the same calls.

An error on one process leaves the others waiting in the next collective; torchrun ends them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from contracts.errors import InputError


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the group that torchrun started, and leave it at the end; the device of this process.

    Started by itself, a process stays by itself.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        yield device
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if _grouped() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _grouped() else 1


def share(n: int) -> slice:
    """This process's part of n items: contiguous, in rank order, equal up to one item, perhaps empty."""
    return _share(n, rank())


def check_enough(n: int) -> None:
    """Refuse fewer items than processes, where every process must have met one.

    Raises:
        InputError: there are fewer.
    """
    if n < size():
        raise InputError(f"{n} retain items to share are too few for {size()} processes")


def gather_rows(own: Tensor, n: int) -> Tensor:
    """All n rows, in order, of a tensor (n, D) of which every process holds its `share(n)`.

    Gradients do not pass: the result is a constant.
    """
    if size() == 1:
        return own.detach()
    parts = [_share(n, other) for other in range(size())]
    # Collectives want equal shapes: shares are padded to the longest one.
    longest = max(part.stop - part.start for part in parts)
    padded = own.new_zeros(longest, *own.shape[1:])
    padded[: len(own)] = own.detach()
    gathered = [torch.empty_like(padded) for _ in parts]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[: part.stop - part.start] for rows, part in zip(gathered, parts, strict=True)])


def all_reduce(tensors: Mapping[str, Tensor]) -> None:
    """Replace every tensor by its sum over the processes, in place.

    All processes hold the same names and shapes, on the device that their group works on (nccl sums on
    GPUs only).
    """
    if size() == 1:
        return
    for name in sorted(tensors):
        dist.all_reduce(tensors[name])


def all_agree(own: bool) -> bool:
    """Whether every process says so: where they decide differently, the next collective hangs."""
    if size() == 1:
        return own
    votes: list[bool] = [own] * size()
    dist.all_gather_object(votes, own)
    return all(votes)


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


def _share(n: int, of_rank: int) -> slice:
    return slice(n * of_rank // size(), n * (of_rank + 1) // size())
