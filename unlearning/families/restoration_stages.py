"""A restoration network as a sequence of stages, so that a step search re-runs only what an edit can change.

As in `staged_tower`, a search changes one tensor at a time and asks for the outputs again: the
activations that enter the stage of the edited tensor are kept, and only the rest of the network runs.
An encoder-decoder hands on more than one tensor: the features, the encoder's features that the
decoder has yet to read (skips), and the input image, which is added to the prediction.

The networks' own forward pass runs these same stages, so results are equal by construction.

Shapes: n images, h x w pixels given, H x W pixels padded (multiples of the coarsest level's stride),
C channels of the features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlearning.families.stages import Stage, Stages


@dataclass(frozen=True)
class Activations:
    """What passes from one stage to the next.

    Attributes:
        image: (n, 3, H, W) the padded input.
        size: h and w, which the output is cropped to.
        features: (n, C, ...) before the first stage the padded input, after the last one the output
            (n, 3, h, w).
        skips: (n, C, ...) features of encoder levels, the coarsest one last; the decoder reads from the end.
    """

    image: Tensor
    size: tuple[int, int]
    features: Tensor
    skips: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, pixels: Tensor, stride: int) -> "Activations":
        """Images (n, 3, h, w) before the first stage: reflected at the bottom and right up to `stride`."""
        height, width = pixels.shape[-2:]
        if height % stride or width % stride:
            rows, columns = (_reflected(side, stride).to(pixels.device) for side in (height, width))
            pixels = pixels[..., rows[:, None], columns]
        return cls(pixels, (height, width), pixels)

    def take(self, rows: Tensor | slice) -> "Activations":
        """Some of the images: a slice, a mask (n,) or indices."""
        skips = tuple(skip[rows] for skip in self.skips)
        return replace(self, image=self.image[rows], features=self.features[rows], skips=skips)

    def split(self, size: int) -> list["Activations"]:
        """The same images in pieces of at most `size`."""
        return [self.take(slice(start, start + size)) for start in range(0, len(self.image), size)]


def on_features(prefixes: tuple[str, ...], run: Callable[[Tensor], Tensor]) -> Stage[Activations]:
    """A stage that reads and writes the features alone."""
    return Stage(prefixes, lambda at: replace(at, features=run(at.features)))


@dataclass(frozen=True)
class StagedNet(Stages[Activations]):
    """The stages of one network; the last one leaves the restored images."""

    def run(self, before: Activations, first: int, last: int | None, micro_batch: int) -> Activations:
        """Pass n >= 1 images through stages[first:last], `micro_batch` at a time; through none, shared."""
        if first == last:
            return before
        pieces = self.passed(before.split(micro_batch), first, last)
        return replace(
            before,
            features=torch.cat([piece.features for piece in pieces]),
            skips=_joined([piece.skips for piece in pieces]),
        )

    def restored(self, before: Activations, first: int, micro_batch: int) -> Tensor:
        """Outputs (n, 3, h, w), not clipped, of n >= 1 images that stand before stage `first`."""
        return self.run(before, first, None, micro_batch).features


def _joined(skips: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(pieces) for pieces in zip(*skips, strict=True))


def _reflected(side: int, stride: int) -> Tensor:
    """Pixel indices that extend `side` pixels to a multiple of `stride` by reflection, however short it is.

    torch's reflection padding refuses to pad by as much as the image has, and has no deterministic
    gradient on CUDA; attacks on the input need one.
    """
    period = max(2 * (side - 1), 1)
    index = torch.arange(-(-side // stride) * stride) % period
    return torch.minimum(index, period - index)
