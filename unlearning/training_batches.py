"""What the losses of trained methods draw from: batches of a CLIP's pairs, or the whole sets of any family.

Shapes: B pairs of a batch, D embedding width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from contracts.values import Method
from unlearning.families import Editable, Request
from unlearning.families.clip import ClipModel, Images
from unlearning.request import UnlearnInputs


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features (B, D) of images and of their captions, with a graph."""

    image: Tensor
    text: Tensor


class Batches:
    """Seeded batches of the forget and the retain set, encoded under the weights of the moment.

    Sets are walked through in a new order each time, whole batches only: the contrastive loss depends
    on their size.

    Attributes:
        generator: for whatever else a loss draws; the same seed, the same run.
        logit_scale: factor on cosines, a scalar.
    """

    def __init__(self, model: ClipModel, inputs: UnlearnInputs, batch: int) -> None:
        self._model = model
        self.generator = torch.Generator().manual_seed(inputs.seed)
        self.logit_scale = model.logit_scale
        self._forget = self._walk(inputs.forget_images, inputs.forget_captions, batch)
        self._retain = self._walk(inputs.retain_images, inputs.retain_captions, batch)

    def forget(self) -> Pairs:
        """The next batch of the forget set."""
        return next(self._forget)

    def retain(self) -> Pairs:
        """The next batch of the retain set."""
        return next(self._retain)

    def _walk(self, images: Images, captions: Sequence[str], batch: int) -> Iterator[Pairs]:
        pixels, tokens = torch.as_tensor(images), self._model.tokenize(captions)
        whole = max(len(pixels) // batch, 1) * batch
        while True:
            order = torch.randperm(len(pixels), generator=self.generator)
            for rows in torch.split(order[:whole], batch):
                yield Pairs(
                    self._model.image_features(self._model.preprocess(pixels[rows])),
                    self._model.text_features(tokens[rows]),
                )


@dataclass(frozen=True, eq=False)
class WholeSets:
    """The whole forget and retain set in every step, by the objectives of any family's request.

    Attributes:
        model: at the weights of the moment.
        request: whose gradients are taken.
        method: names the micro-batch.
        names: the tensors that are trained.
    """

    model: Editable
    request: Request
    method: Method
    names: tuple[str, ...]

    def ascended(self) -> Tensor:
        """Scalar with the gradient that forgetting ascends; its value means nothing."""
        gradient = self.request.forget_gradient(
            self.model, self.request.targets, self.names, self.method.micro_batch
        )
        return self._along(gradient)

    def descended(self) -> Tensor:
        """Scalar with the gradient that retaining descends; its value means nothing."""
        return self._along(
            self.request.retain_gradient(self.model, self.names, self.method, lambda what, done, total: None)
        )

    def _along(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """Weights times a gradient, taken as a constant."""
        return torch.stack([(self.model.parameters[n] * g).sum() for n, g in gradient.items()]).sum()
