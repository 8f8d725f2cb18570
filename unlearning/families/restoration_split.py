"""The search split of a request to a restorer, re-measured after each edit from the edited stage on.

An image is *known* while it comes out nearer to the clean one than it went in by more than `visible` dB.  At
the threshold it is not, unlike where scores tie in other families: an image that is left exactly as it came
has a gain of 0, and is not restored.

Shapes: n images asked for, N images of H x W pixels.  PSNR in dB, of values 0 to 1, the output clipped.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from contracts.values import Method, Tower
from unlearning.families import earliest
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_stages import Activations
from unlearning.forgetting import Forgetting, mean_if
from unlearning.labels import rows_of
from unlearning.resumable_pass import Entering, ResumablePass

if TYPE_CHECKING:
    from unlearning.families.restoration_request import RestorationRequest

# Margin of an image at the threshold: below zero, and smaller than any difference between two gains.
NOT_KNOWN = -1e-30
# Parts of the images to keep, after each of which it is asked whether a layer can still be the best.
LOOKS = 4


class RestorationSplit:
    """Search pairs, and the model's outputs and their errors under the weights at construction."""

    @torch.no_grad()
    def __init__(
        self,
        model: RestorationModel,
        request: "RestorationRequest",
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
        margins = gains - self._split.visible
        return Forgetting.of(
            margins.where(margins != 0, NOT_KNOWN),
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
