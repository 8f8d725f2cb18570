"""How far an edit has moved the similarities of retained pairs (L_m of RAZOR, arXiv 2603.14819)."""

from collections.abc import Sequence

import torch

from contracts.values import Method
from unlearning.families.clip import ClipModel
from unlearning.gradients import Gradients
from unlearning.inplace import requiring_grad
from unlearning.request import UnlearnInputs


class Drift:
    """How far image-text similarities of retain items have moved since this was made."""

    def __init__(self, model: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
        self._model, self._batch = model, method.micro_batch
        self._pixels = torch.as_tensor(inputs.retain_images)
        self._tokens = model.tokenize(inputs.retain_captions)
        self._image = model.encode_images(inputs.retain_images, self._batch)
        self._text = model.encode_texts(inputs.retain_captions, self._batch)

    def gradient(self, layers: Sequence[str]) -> Gradients:
        """Gradient of the mean squared change of the cosines within batches of `micro_batch` pairs."""
        weights = [self._model.parameters[layer] for layer in layers]
        total = {layer: torch.zeros_like(w) for layer, w in zip(layers, weights, strict=True)}
        batches = torch.split(torch.arange(len(self._pixels)), self._batch)
        with requiring_grad(self._model.net, total):
            for rows in batches:
                image = self._model.image_features(self._model.preprocess(self._pixels[rows]))
                text = self._model.text_features(self._tokens[rows])
                moved = image @ text.T - self._image[rows] @ self._text[rows].T
                gradients = torch.autograd.grad(moved.square().mean() / len(batches), weights)
                for layer, gradient in zip(layers, gradients, strict=True):
                    total[layer] += gradient
        return total
