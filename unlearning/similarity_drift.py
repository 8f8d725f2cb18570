"""How far an edit has moved the similarities of retained pairs (L_m of RAZOR, arXiv 2603.14819).

The cosines are those within batches of the retain loss, and couple the items of a batch just so: their
gradient is taken in pieces in the same way (`unlearning.contrastive`).

Shapes: B pairs of a retain batch, D embedding width.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from contracts.values import Method
from unlearning.accumulation import Gradients, GradientSum
from unlearning.contrastive import drawn_batches, surrogates
from unlearning.encoders import FULL_PRECISION, encoders
from unlearning.families.clip import ClipModel, tower_of
from unlearning.request import UnlearnInputs


class Drift:
    """How far image-text similarities of retain items have moved since this was made.

    Batches hold `retain_batch` pairs each, the same ones as the retain loss's.
    """

    def __init__(self, model: ClipModel, inputs: UnlearnInputs, method: Method) -> None:
        self._model, self._micro_batch = model, method.micro_batch
        self._pixels = torch.as_tensor(inputs.retain_images)
        self._tokens = model.tokenize(inputs.retain_captions)
        self._image = model.encode_images(inputs.retain_images, method.micro_batch)
        self._text = model.encode_texts(inputs.retain_captions, method.micro_batch)
        self._batches = drawn_batches(len(self._pixels), method.retain_batch, inputs.seed)

    def gradient(self, layers: Sequence[str]) -> Gradients:
        """Gradient of the mean squared change of all cosines within retain batches.

        Every cosine counts the same, so a smaller last batch counts less.

        Raises:
            InputError: no layer is named.
            ModelError: it is not finite (the message names the tensor), or the model has no weight of a name.
        """
        n_cosines = sum(len(rows) ** 2 for rows in self._batches)
        total = GradientSum(self._model, layers, FULL_PRECISION)
        edited = {tower_of(layer) for layer in layers}
        with encoders(self._model, layers, FULL_PRECISION) as run:
            encode = run.by_tower(self._pixels, self._tokens)
            for rows in self._batches:
                moved = partial(self._moved, rows)
                for scalar in surrogates(
                    self._model, encode, rows, edited, loss=moved, micro_batch=self._micro_batch
                ):
                    total.add(scalar / n_cosines)
                    del scalar  # its graph, before the next one is made
        return total.total()

    def _moved(self, rows: Tensor, image: Tensor, text: Tensor) -> Tensor:
        """Sum of the squared changes of a batch's cosines (B, B), from features (B, D)."""
        return (image @ text.T - self._image[rows] @ self._text[rows].T).square().sum()
