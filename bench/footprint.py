"""How much memory profiling takes: the growth of the process's resident size, and what is allowed."""

import ctypes
import gc
from collections.abc import Callable
from typing import Any

import torch

from bench.cost import costing
from contracts.values import Method
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.inplace import requiring_grad
from unlearning.objectives import retain_loss
from unlearning.request import UnlearnInputs

# Profiling may grow by so many times the candidate tensors, and the activations of one micro-batch.
ALLOWED = 2.2


def profiling_memory(model: ClipModel, inputs: UnlearnInputs, method: Method) -> dict[str, float | None]:
    """MiB: candidate tensors of the method's towers, activations of one micro-batch, growth, what is allowed.

    Growth is None where the kernel does not tell it.
    """
    candidates = [c for c in model.candidates() if c.tower in method.towers]
    tensors = sum(model.parameters[c.name].nbytes for c in candidates) / 2**20
    activations = growth(lambda: _graph(model, inputs, method, [c.name for c in candidates]))
    return {
        "candidate_tensors_mib": tensors,
        "micro_batch_activations_mib": activations,
        "allowed_mib": None if activations is None else ALLOWED * tensors + activations,
        "profiling_mib": growth(lambda: methods.profile(model, inputs, method)),
    }


def growth(run: Callable[[], Any]) -> float | None:
    """Peak of the resident size during `run` over the one before, in MiB; None where it is not told."""
    gc.collect()
    # Memory that was freed before but not given back would be used again, and its use not seen.
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
    with costing() as cost:
        run()
    return cost.peak_growth_mib


def _graph(model: ClipModel, inputs: UnlearnInputs, method: Method, layers: list[str]) -> None:
    """One forward pass of a micro-batch of pairs, with everything that its backward pass would need."""
    rows = slice(method.micro_batch)
    with requiring_grad(model.net, layers):
        image = model.image_features(model.preprocess(torch.as_tensor(inputs.retain_images[rows])))
        text = model.text_features(model.tokenize(inputs.retain_captions[rows]))
        retain_loss(image, text, model.logit_scale)
