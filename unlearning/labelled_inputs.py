"""What enters linear layers over forget and retain set, told apart by forgotten concept.

Shapes: n items, L positions (tokens, pixels) of an item, d features, k concepts.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from contracts.values import Tower
from unlearning.families.clip import ClipModel
from unlearning.leace import LabelledMoments
from unlearning.linear_layers import LinearLayer
from unlearning.request import Progress, UnlearnInputs


@dataclass
class _Listener:
    """Adds what a layer sees to its moments; told the labels, and the ends of texts, of each batch."""

    layer: LinearLayer
    labels: Tensor
    ends: Tensor | None = None
    moments: LabelledMoments | None = None

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        x = self.layer.seen(module, args, kwargs, output)
        n, n_positions, n_features = x.shape
        counts = torch.ones(n, n_positions, dtype=torch.bool)
        if n_positions > 1 and self.ends is not None:
            # Nothing after the end of a text can reach its feature.
            places, ends = torch.arange(n_positions), self.ends[:, None]
            counts = places == ends if self.layer.pooled else places <= ends
        elif self.layer.pooled:
            counts[:, 1:] = False
        if self.moments is None:
            self.moments = LabelledMoments(n_features, self.labels.shape[1], x.device)
        self.moments.add(x[counts.to(x.device)], self.labels[counts.nonzero()[:, 0]])


@torch.no_grad()
def input_moments(
    model: ClipModel,
    tower: Tower,
    layers: Sequence[LinearLayer],
    inputs: UnlearnInputs,
    micro_batch: int,
    progress: Progress,
) -> dict[str, LabelledMoments]:
    """Moments of what enters layers of one tower, labelled by forgotten concept, over forget and retain set.

    Every counting position of an item is a sample with the item's label; retained items have none (0).

    Args:
        model: at the weights to look at; they stay as they are.
        tower: which one runs, on images or on captions.
        layers: of that tower.
        inputs: forget and retain set.
        micro_batch: items at a time; decides memory, not the result.
        progress: told of "layer inputs".
    """
    listeners = {layer.weight: _Listener(layer, torch.empty(0)) for layer in layers}
    parts = [
        (inputs.forget_images, inputs.forget_captions, _one_hot(inputs)),
        (
            inputs.retain_images,
            inputs.retain_captions,
            torch.zeros(len(inputs.retain_images), len(inputs.targets)),
        ),
    ]
    total, done = sum(len(labels) for *_, labels in parts), 0
    with ExitStack() as hooks:
        for layer in layers:
            hook = layer.module.register_forward_hook(listeners[layer.weight], with_kwargs=True)
            hooks.enter_context(hook)
        for images, captions, labels in parts:
            for rows in torch.split(torch.arange(len(labels)), micro_batch):
                tokens = model.tokenize([captions[i] for i in rows.tolist()])
                for listener in listeners.values():
                    listener.labels = labels[rows]
                    listener.ends = model.text_lengths(tokens) - 1 if tower == "text" else None
                if tower == "text":
                    model.text_features(tokens)
                else:
                    model.image_features(model.preprocess(torch.as_tensor(images)[rows]))
                done += len(rows)
                progress("layer inputs", done, total)
    return {name: listener.moments for name, listener in listeners.items() if listener.moments is not None}


def _one_hot(inputs: UnlearnInputs) -> Tensor:
    """(N_f, k): which of the k targets each forget item belongs to."""
    labels = torch.as_tensor(inputs.forget_labels)
    return (labels[:, None] == torch.tensor(inputs.targets)).float()
