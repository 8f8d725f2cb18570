"""A device for machines without a GPU: CPU tensors that pose as another's and will not mix with the CPU's.

It refuses what CUDA refuses: operations on tensors of two devices (scalars and indices aside), generators of
the CPU, `numpy()`, and under deterministic algorithms the kernels that have no such form there.  It computes
on the CPU, so results are the CPU's, and it has no autocast.  What is no operator of torch's dispatcher is
given to it by patches, so `install` is for a process of its own.

torch calls this a Python backend (`torch.utils.backend_registration`) and may change it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "posing"
# Operators that take tensors of both: copies, and indices.
_COPIES = ("aten::_to_copy", "aten::copy_", "aten::set_")
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
_NONDETERMINISTIC = {
    f"aten::{name}"
    for name in (
        "_adaptive_avg_pool2d_backward",
        "_adaptive_avg_pool3d_backward",
        "_ctc_loss_backward",
        "adaptive_max_pool2d_backward",
        "avg_pool3d_backward",
        "fractional_max_pool2d_backward",
        "grid_sampler_2d_backward",
        "histc",
        "kthvalue",
        "max_pool3d_with_indices_backward",
        "median",
        "nll_loss2d_forward",
        "put",
        "put_",
        "reflection_pad1d_backward",
        "reflection_pad2d_backward",
        "replication_pad1d_backward",
        "replication_pad2d_backward",
        "upsample_bicubic2d_backward",
        "upsample_bilinear2d_backward",
        "upsample_linear1d_backward",
        "upsample_trilinear3d_backward",
    )
}


class Posing(torch.Tensor):
    """A tensor of the device; `raw` is the CPU tensor behind it."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Posing":
        own = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        own.raw = raw
        return own

    def tolist(self) -> Any:
        return self.raw.tolist()

    def __getitem__(self, at: Any) -> Any:
        return torch.Tensor.__getitem__(self, torch.as_tensor(at) if isinstance(at, list) else at)

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operator, *args, **(kwargs or {}))


class _Module(backend_registration._DummyBackendModule):
    """What torch asks `torch.<device>` for; random numbers come from the CPU."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None: ...

    def manual_seed_all(self, seed: int) -> None: ...

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False


_kept: list[torch.library.Library] = []  # its kernels go with it


def install() -> None:
    """Make the device of this name, for the rest of this process."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")
    _kept.append(library)
    # They fill what they have made from Python, or resize it: neither passes the dispatcher.
    for name in ("arange", "as_tensor", "eye", "full", "linspace", "randperm", "tensor"):
        setattr(torch, name, _made_on_cpu(getattr(torch, name)))
    torch.Tensor.new_tensor = lambda own, data, **told: torch.tensor(
        data, **{"dtype": own.dtype, "device": own.device, **told}
    )
    torch.nn.Module.to = _swapping(torch.nn.Module.to)


def _run(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse what CUDA refuses; else compute on the CPU."""
    name, wanted = operator._schema.name, kwargs.get("device")
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    has_own = any(isinstance(tensor, Posing) for tensor in tensors)
    ours = has_own if wanted is None else torch.device(wanted).type == NAME
    _refuse_mixed(name, args, tensors)
    if ours or has_own:
        _refuse_kernel(name, args, kwargs)
    raw_args, raw_kwargs = tree_map_only(Posing, lambda tensor: tensor.raw, (args, kwargs))
    if wanted is not None:
        raw_kwargs["device"] = torch.device("cpu")
    with _disable_current_modes():
        found = operator(*raw_args, **raw_kwargs)
    if "out" in kwargs:
        return kwargs["out"]
    if name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]  # in place
    return tree_map_only(torch.Tensor, Posing, found) if ours else found


def _refuse_mixed(name: str, args: Any, tensors: list[torch.Tensor]) -> None:
    if name in _COPIES:
        return
    if name in _INDEXED:
        own = isinstance(args[0], Posing)
        values = [args[2]] if len(args) > 2 and args[2].dim() else []
        indices = [each for each in args[1] if each is not None]
        if any(isinstance(each, Posing) != own for each in values):
            raise RuntimeError(f"{name}: the values are on another device")
        if not own and any(isinstance(each, Posing) for each in indices):
            raise RuntimeError(f"{name}: indices of {NAME} into a CPU tensor")
        return
    devices = {tensor.device.type for tensor in tensors if tensor.dim() or isinstance(tensor, Posing)}
    if len(devices) > 1:
        shapes = [(tuple(tensor.shape), tensor.device.type) for tensor in tensors]
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, got {shapes}")


def _refuse_kernel(name: str, args: Any, kwargs: Any) -> None:
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{name}: expected a generator of {NAME}, got one of the CPU")
    weighted = name == "aten::bincount" and len(args) > 1 and args[1] is not None
    if torch.are_deterministic_algorithms_enabled() and (name in _NONDETERMINISTIC or weighted):
        raise RuntimeError(f"{name} does not have a deterministic implementation")


def _made_on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(*args: Any, device: Any = None, **told: Any) -> Any:
        if device is None or torch.device(device).type != NAME:
            return make(*args, device=device, **told)
        return make(*args, **told).to(NAME)

    return made


def _swapping(to: Callable[..., Any]) -> Callable[..., Any]:
    """A parameter cannot become another class in place: where it moves here, it is swapped."""

    def moved(module: Any, *args: Any, **told: Any) -> Any:
        here = any(
            isinstance(each, (str, torch.device)) and NAME in str(each) for each in (*args, *told.values())
        )
        torch.__future__.set_swap_module_params_on_conversion(here)
        try:
            return to(module, *args, **told)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    return moved
