"""What a restorer is asked to forget: degradations, as pairs of a degraded and a clean image.

    forget objective   L1 between what the model makes of a degraded image and the degraded image itself,
                       descended: the image is to be left as it came.  Bounded, unlike ascent on the
                       restoration loss, and it ends where forgetting has to end, at the input's level
                       (below it the model would do harm, which tells that something was forgotten)
    retain objective   L1 between what the model makes of a degraded image and the clean one
    search split       an image is *known* while it comes out nearer to the clean one than it went in, by
                       `visible` decibels or more

`slug` and `slug-preconditioned` add step * gradient of what they ascend, so the forget gradient here is
that of minus the distance to the input.

Shapes: N images of H x W pixels.  PSNR in dB, of values 0 to 1, the output clipped.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError
from contracts.values import Method, Tower
from unlearning.accumulation import Gradients, mean_gradient
from unlearning.families import Forgetting, Progress, Watch, earliest, mean_if
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_stages import Activations
from unlearning.inplace import requiring_grad
from unlearning.labels import check_labels, rows_of
from unlearning.resumable_pass import Entering, ResumablePass

Pixels = NDArray[np.uint8]
# Parts of the images to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 4


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
        visible: decibels by which a search image must come out nearer to the clean one to count as known.

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
    ) -> "RestorationSplit":
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


class RestorationSplit:
    """Search pairs, and the model's outputs and their errors under the weights at construction."""

    @torch.no_grad()
    def __init__(
        self,
        model: RestorationModel,
        request: RestorationRequest,
        method: Method,
        layers: Collection[str] = (),
    ) -> None:
        self.model, self.method, self.visible = model, method, request.visible
        self.labels = torch.as_tensor(request.search.labels)
        self.clean = model.preprocess(request.search.clean)
        degraded = model.preprocess(request.search.degraded)
        self.net = model.staged()
        self.input_errors = mean_squares(degraded, self.clean)
        first_edit = earliest(self, layers).get("net", 0)
        self._pass = ResumablePass(self.net, model.activations(degraded), method.micro_batch, first_edit)
        whole = RestorationView(self, self._pass.upto(first_edit))
        self.errors = whole.errors(torch.arange(len(self.labels)))
        self.kept_rows = torch.nonzero(~torch.isin(self.labels, torch.tensor(request.targets))).flatten()

    def place(self, layer: str) -> tuple[Tower, int]:
        """Tower of a weight, and the stage in it that uses the weight."""
        return "net", self.net.stage_of(layer)

    def view(self, stages: Mapping[Tower, int], before: "RestorationView | None" = None) -> "RestorationView":
        """The split, ready for edits at or after the given stage; of none, everything is known already."""
        if "net" not in stages:
            return RestorationView(self, None)
        passed = None if before is None else before.entering
        return RestorationView(self, self._pass.upto(stages["net"], passed))


class RestorationView:
    """The search split before some stage, or as it was where nothing enters one."""

    def __init__(self, split: RestorationSplit, entering: Entering[Activations] | None) -> None:
        self._split, self.entering = split, entering

    @torch.no_grad()
    def errors(self, rows: Tensor) -> Tensor:
        """(n,) mean squared error of the outputs for the images `rows` (n,), values 0 to 1, clipped."""
        split = self._split
        if self.entering is None:
            known: Tensor = split.errors[rows]
            return known
        entering = self.entering.activations.take(rows)
        restored = split.net.restored(entering, self.entering.stage, split.method.micro_batch)
        return mean_squares(restored.clamp(0.0, 1.0), split.clean[rows])

    def forgetting(self, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        """How much nearer the targets' images still come to the clean ones; always exact."""
        rows = rows_of(self._split.labels, targets)
        return self._forgetting(self.errors(rows), rows, targets)

    def both(self, targets: Sequence[int]) -> tuple[Forgetting, float] | None:
        """`forgetting` and what is retained, in one pass over everything."""
        rows = rows_of(self._split.labels, targets)
        errors = self.errors(torch.arange(len(self._split.labels)))
        seen = self._forgetting(errors[rows], rows, targets)
        kept = self._split.kept_rows
        if seen is None or not bool(torch.isfinite(errors).all()):
            return None
        return seen, float(self._fidelity(errors[kept], kept).mean())

    def retained_rate_if(self, enough: Callable[[float], bool]) -> float | None:
        """Mean over the images to keep of min(1, error before / error now); None once it is not `enough`.

        1 is nothing lost, 0.79 one dB.  An image that got better counts as one that stayed.  The images are
        looked at in an order that mixes degradations, so that a part of them speaks for all.
        """
        kept = self._split.kept_rows
        parts = [kept[start::LOOKS] for start in range(min(LOOKS, len(kept)))]
        return mean_if(map(self._fidelity_of, parts), len(kept), enough)

    def _fidelity_of(self, rows: Tensor) -> Tensor | None:
        """`_fidelity` of the images `rows` (n,); None if an error is not finite."""
        errors = self.errors(rows)
        return self._fidelity(errors, rows) if bool(torch.isfinite(errors).all()) else None

    def _fidelity(self, errors: Tensor, rows: Tensor) -> Tensor:
        before = self._split.errors[rows]
        return torch.where(errors > before, before / errors, 1.0)  # 1 also where both are 0

    def _forgetting(self, errors: Tensor, rows: Tensor, targets: Sequence[int]) -> Forgetting | None:
        if not bool(torch.isfinite(errors).all()):
            return None
        gains = psnr(errors) - psnr(self._split.input_errors[rows])
        return Forgetting.of(
            gains - self._split.visible,
            gains,
            self._split.labels[rows],
            targets,
            self._split.method.forget_target,
        )


def mean_squares(shown: Tensor, clean: Tensor) -> Tensor:
    """(N,) mean squared error of images (N, 3, H, W)."""
    return (shown - clean).square().flatten(1).mean(dim=1)


def psnr(errors: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of mean squared errors (N,) of values 0 to 1; at most 100."""
    return (-10 * errors.clamp_min(1e-10).log10()).clamp_max(100.0)
