"""The official evaluation protocol of UnlearnCanvas, for those who have its class lists and classifiers.

Prompt, seeds, sampling and classifiers are those of the benchmark's own evaluation
(OPTML-Group/UnlearnCanvas): every object in every style with five seeds, judged by one ViT-L/16 for styles
and one for objects.  Photographs are an output of the classifier of styles, beside the 50, and no style (the
benchmark's issues 6 and 13): nothing is drawn of them.  The user's folder holds

    styles.txt, objects.txt            one class a line, in the order of the classifiers' outputs
    style50.*, style50_cls.*           the classifiers: .safetensors, or .pth that loads with weights_only

Nothing of it ships: the checkpoints are not ours to pass on.

Shapes: N pictures, S side in pixels, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contracts.errors import InputError, ModelError
from contracts.values import Axis

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "A {object} image in {style} style."
SEEDS = (188, 288, 588, 688, 888)
STEPS, GUIDANCE = 100, 9.0
PHOTOS = "Seed_Images"
ARCHITECTURE = "vit_large_patch16_224"
LISTS: dict[Axis, str] = {"object": "objects.txt", "style": "styles.txt"}
CLASSIFIERS: dict[Axis, str] = {"object": "style50_cls", "style": "style50"}
SUFFIXES = (".safetensors", ".pth")
SIZE = 224
MEAN = STD = 0.5

Classifier = Callable[[NDArray[np.uint8]], "Tensor"]


@dataclass(frozen=True)
class CanvasCell:
    """One picture of the protocol: places of object and style in their lists, the prompt, the seed."""

    object: int
    style: int
    prompt: str
    seed: int


def classes(folder: Path, axis: Axis) -> tuple[str, ...]:
    """The class list of an axis, in the order of the classifier's outputs.

    Raises:
        InputError: the file is missing, has fewer than two lines, or a line twice.
    """
    path = folder / LISTS[axis]
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError:
        raise InputError(f"{path.name} is missing: one class a line, as the classifier was trained") from None
    if len(found) < 2 or len(set(found)) != len(found):
        raise InputError(f"{path.name} must hold at least 2 distinct classes, got {len(found)} lines")
    return found


def canvas_cells(
    objects: Sequence[str], styles: Sequence[str], seeds: Sequence[int] = SEEDS
) -> list[CanvasCell]:
    """Every object in every style but the photographs, with every seed."""
    return [
        CanvasCell(o, s, PROMPT.format(object=in_words(name), style=in_words(style)), seed)
        for s, style in enumerate(styles)
        if style != PHOTOS
        for o, name in enumerate(objects)
        for seed in seeds
    ]


def in_words(name: str) -> str:
    """A class as prompts write it."""
    return name.replace("_", " ")


def classifier_file(folder: Path, axis: Axis) -> Path:
    """The checkpoint of an axis' classifier.

    Raises:
        ModelError: it is missing.
    """
    paths = [folder / f"{CLASSIFIERS[axis]}{suffix}" for suffix in SUFFIXES]
    for path in paths:
        if path.exists():
            return path
    raise ModelError(f"{paths[0].name} or {paths[1].name} is missing")


def load_classifier(
    folder: Path, axis: Axis, architecture: str = ARCHITECTURE, device: str = "cpu"
) -> Classifier:
    """A classifier of the benchmark: uint8 pictures (N, S, S, 3) to logits (N, C) on the device.

    Args:
        folder: the user's, see above.
        axis: which classifier.
        architecture: timm's name of the network.
        device: where the network lives.

    Raises:
        ModelError: timm is not installed or does not know the architecture, the checkpoint is missing, would
            need unpickling, or does not fit network and class list.
    """
    try:
        import timm
    except ImportError:
        raise ModelError("the classifiers of UnlearnCanvas need timm, which is not installed") from None
    import torch
    from torch.nn import functional

    from unlearning.families.clip_import import read_state_dict

    path = classifier_file(folder, axis)
    n_classes = len(classes(folder, axis))
    if not timm.is_model(architecture):
        raise ModelError(f"timm knows no architecture {architecture!r}")
    net = timm.create_model(architecture, pretrained=False, num_classes=n_classes)
    weights: dict[str, Any] = read_state_dict(path)
    try:
        net.load_state_dict(weights)
    except RuntimeError:
        raise ModelError(f"{path.name} does not fit {architecture} with {n_classes} classes") from None
    net.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def logits(images: NDArray[np.uint8]) -> "Tensor":
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2)
        if pixels.shape[-2:] != (SIZE, SIZE):
            # As the benchmark's evaluation resizes; on the CPU, where torch can do so with bytes.
            pixels = functional.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", antialias=True)
        parts = torch.split((pixels.float() / 255 - MEAN) / STD, 16)
        return torch.cat([net(part.to(device)) for part in parts])

    return logits
