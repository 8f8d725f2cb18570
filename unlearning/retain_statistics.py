"""What a retain set says of a model, measured once and used by every later request on that version.

The retain gradient and the second moments depend on the weights and the retain set alone, so they
are taken of the whole set and kept.  A request leaves some items of the set out, those of what it
forgets and of what was forgotten before: their share of the moments is measured by itself and
subtracted, which is exact, because moments are sums over items.  The contrastive loss is no such
sum.  Where a method needs the gradient without those items, it is taken anew.

Statistics of a retain set are sums over all of it; forget gradients are never kept like this.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from contracts.errors import ModelError
from contracts.values import Tower
from contracts.whole_files import written_whole
from unlearning.families.clip import ClipModel, Images
from unlearning.gradients import Gradients
from unlearning.moment_sums import MatrixForm, Moments, MomentSums
from unlearning.moments import part_sums, retain_gradient_and_sums


@dataclass(frozen=True)
class Wanted:
    """Which statistics a method uses; with the weights and the retain set this names them.

    Attributes:
        towers: whose layers.
        retain_batch: items that are each other's negatives in the retain loss.
        widest: layers with more inputs have no moments taken.
        seed: of the order of the items.
    """

    towers: tuple[Tower, ...]
    retain_batch: int
    widest: int
    seed: int


@dataclass(frozen=True, eq=False)
class RetainStatistics:
    """Of a whole retain set: the gradient of every candidate layer, and sums of second moments.

    Attributes:
        wanted: what was measured.
        n_items: size of the set.
        gradient: by layer, of all candidates of the towers.
        sums: by layer, in the order of the backward pass, of the matrices that are not too wide.
    """

    wanted: Wanted
    n_items: int
    gradient: Gradients
    sums: Mapping[str, MomentSums]


@dataclass(frozen=True, eq=False, repr=False)
class KnownRetain:
    """Statistics of a retain set, and the items of it that a request leaves out.

    Attributes:
        statistics: of the whole set.
        rows: (K,) where in the set the left-out items stand.
        images: uint8 (K, H, W, 3).
        captions: K texts.
    """

    statistics: RetainStatistics
    rows: Tensor
    images: Images
    captions: Sequence[str]

    def moments(self, model: ClipModel, layers: Sequence[str], micro_batch: int) -> dict[str, Moments]:
        """Second moments on the set without the left-out items, of those of `layers` that have any."""
        whole = {layer: sums for layer, sums in self.statistics.sums.items() if layer in set(layers)}
        if len(self.rows) == 0:
            return {layer: sums.mean() for layer, sums in whole.items()}
        part = part_sums(
            model,
            self.images,
            self.captions,
            list(whole),
            rows=self.rows,
            n_items=self.statistics.n_items,
            micro_batch=micro_batch,
            widest=self.statistics.wanted.widest,
        )
        return {layer: sums.less(part.pop(layer)).mean() for layer, sums in whole.items()}


def measure(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    wanted: Wanted,
    *,
    micro_batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> RetainStatistics:
    """Statistics of a whole retain set: images uint8 (N, H, W, 3) and N captions, in the set's order.

    Raises:
        InputError: there are fewer than two items, or not as many captions as images.
        ModelError: a gradient or a moment is not finite (the message names the tensor).
    """
    layers = [c.name for c in model.candidates() if c.tower in wanted.towers]
    gradient, sums = retain_gradient_and_sums(
        model,
        images,
        captions,
        layers,
        retain_batch=wanted.retain_batch,
        micro_batch=micro_batch,
        seed=wanted.seed,
        widest=wanted.widest,
        progress=progress,
    )
    return RetainStatistics(wanted, len(images), gradient, sums)


def write(statistics: RetainStatistics, path: Path) -> None:
    """Write one safetensors file, whole or not at all."""
    tensors = {f"gradient/{layer}": value.cpu().contiguous() for layer, value in statistics.gradient.items()}
    tensors |= {f"moment/{layer}": sums.inputs.cpu().contiguous() for layer, sums in statistics.sums.items()}
    moments = [
        [layer, sums.form.parts, sums.form.stored_by_input, sums.rows]
        for layer, sums in statistics.sums.items()
    ]
    about = json.dumps({"n_items": statistics.n_items, "moments": moments})
    with written_whole(path) as partial:
        save_file(tensors, partial, {"about": about, "sha256": _digest(tensors, about)})


def read(path: Path, wanted: Wanted, device: torch.device | str = "cpu") -> RetainStatistics:
    """The statistics in a file that `write` left.

    Raises:
        ModelError: the file is missing, cut short or changed.
    """
    try:
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
            metadata = content.metadata() or {}
    except (OSError, SafetensorError):
        raise ModelError(f"{path.name} is missing or is not a complete file of retain statistics") from None
    if metadata.get("sha256") != _digest(tensors, metadata.get("about", "")):
        raise ModelError(f"{path.name} was changed after it was written")
    about = json.loads(metadata["about"])
    return RetainStatistics(
        wanted,
        about["n_items"],
        {
            name.removeprefix("gradient/"): value.to(device)
            for name, value in tensors.items()
            if name.startswith("gradient/")
        },
        {
            layer: MomentSums(MatrixForm(parts, by_input), tensors[f"moment/{layer}"].to(device), None, rows)
            for layer, parts, by_input, rows in about["moments"]
        },
    )


def _digest(tensors: Mapping[str, Tensor], about: str) -> str:
    """Of one tensor after the other: a copy of all of them would be the size of the file."""
    found = sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    found.update(about.encode())
    return found.hexdigest()
