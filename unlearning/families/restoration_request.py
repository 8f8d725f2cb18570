"""What a restorer is asked to forget: degradations, as pairs of a degraded and a clean image.

    forget objective   L1 between what the model makes of a degraded image and the degraded image itself,
                       descended: the image is to be left as it came.  Bounded, unlike ascent on the
                       restoration loss, and it ends where forgetting has to end, at the input's level
                       (below it the model would do harm, which tells that something was forgotten)
    retain objective   L1 between what the model makes of a degraded image and the clean one
    search split       see `restoration_split`

`slug` and `slug-preconditioned` add step * gradient of what they ascend, so the forget gradient here is
that of minus the distance to the input.

Shapes: N images of H x W pixels.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError
from contracts.values import Method
from unlearning.accumulation import Gradients, mean_gradient
from unlearning.families import Progress, Watch
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_split import RestorationSplit
from unlearning.inplace import requiring_grad
from unlearning.labels import check_labels

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Degraded images, what they must be restored to, and the degradation of each.

    Attributes:
        degraded: uint8 (N, H, W, 3).
        clean: uint8 (N, H, W, 3).
        labels: (N,) classes.

    Raises:
        InputError: sizes or types contradict each other, or there are none.
    """

    degraded: Pixels
    clean: Pixels
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        for images in (self.degraded, self.clean):
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise InputError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
        if self.degraded.shape != self.clean.shape or len(self.labels) != len(self.clean):
            raise InputError(
                f"degraded {self.degraded.shape}, clean {self.clean.shape} and {len(self.labels)} labels "
                "do not make pairs"
            )
        if 0 in self.degraded.shape:
            raise InputError("there are no pairs of images")

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, classes: Sequence[int]) -> "Pairs":
        """Those of some classes."""
        rows = np.isin(self.labels, classes)
        return Pairs(self.degraded[rows], self.clean[rows], self.labels[rows])


@dataclass(frozen=True, eq=False, repr=False)
class RestorationRequest:
    """The sets of one request to a restorer, in memory.

    Attributes:
        class_ids: C opaque ids of degradations; clean images that must stay as they are may be one.
        targets: the degradations to forget, as indices into `class_ids`.
        forget: pairs of the targets.
        retain: pairs of what is kept.
        search: pairs of both.
        seed: of nothing here; every mean is over whole sets.
        visible: gain in dB over the input above which a search image counts as known.

    Raises:
        InputError: labels contradict each other (`unlearning.labels`).
    """

    class_ids: tuple[str, ...]
    targets: tuple[int, ...]
    forget: Pairs
    retain: Pairs
    search: Pairs
    seed: int = 0
    visible: float = 0.0
    known_retain: ClassVar[None] = None

    def __post_init__(self) -> None:
        check_labels(
            self.class_ids,
            self.targets,
            forget=self.forget.labels,
            search=self.search.labels,
            retain=self.retain.labels,
        )

    def forget_gradient(
        self, model: RestorationModel, targets: Sequence[int], layers: Sequence[str], micro_batch: int
    ) -> Gradients:
        """Gradient of minus the mean L1 between output and degraded input, over the targets' pairs.

        Raises:
            ModelError: a gradient is not finite (the message names the tensor).
        """
        own = self.forget.of(targets)
        return _gradient(model, own.degraded, own.degraded, layers, micro_batch, sign=-1.0)

    @property
    def n_retained(self) -> int:
        """How many pairs are retained."""
        return len(self.retain)

    def retain_gradient(
        self,
        model: RestorationModel,
        layers: Sequence[str],
        method: Method,
        progress: Progress,
        watch: Watch | None = None,
    ) -> Gradients:
        """Gradient of the mean L1 between output and clean image, over all retained pairs.

        Raises:
            ModelError: a gradient is not finite (the message names the tensor).
        """
        return _gradient(
            model,
            self.retain.degraded,
            self.retain.clean,
            layers,
            method.micro_batch,
            watch=watch,
            progress=lambda done, total: progress("retain gradient", done, total),
        )

    def search_split(
        self, model: RestorationModel, method: Method, layers: Collection[str] = ()
    ) -> RestorationSplit:
        """The search split at the model's present weights; see `families.Request`."""
        return RestorationSplit(model, self, method, layers)


def _gradient(
    model: RestorationModel,
    degraded: Pixels,
    wanted: Pixels,
    layers: Sequence[str],
    micro_batch: int,
    *,
    sign: float = 1.0,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of sign * L1 between outputs and wanted images, mean over all pixels of all images."""

    def losses(rows: Tensor) -> Iterator[Tensor]:
        restored = model.forward(model.preprocess(degraded[rows.numpy()]))
        yield sign * functional.l1_loss(restored, model.preprocess(wanted[rows.numpy()]))

    with requiring_grad(model.net, layers):
        return mean_gradient(
            model, layers, len(degraded), micro_batch, losses, watch=watch, progress=progress
        )
