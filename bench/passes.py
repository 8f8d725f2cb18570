"""Work that no method can avoid: the measure of `bench.limit`.

Images go through open_clip's own code, texts through the product's `ClipModel.text_features`, which leaves
out the padding that all texts of a piece have: padding can be avoided, so it is no part of a limit.

Tell is called with (what, items done, items).
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from contracts.values import Method
from tasks.progress import Tell
from unlearning.families.clip import ClipModel, Images
from unlearning.inplace import requiring_grad
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import UnlearnInputs
from unlearning.zero_shot import fill_templates


def forget_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """One forward and one backward pass over the forget set, to every candidate tensor."""
    _gradient_pass(model, inputs.forget_images, inputs.forget_captions, forget_loss, method, "forget", tell)


def retain_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """The same over the retain set, with the contrastive loss."""

    def loss(image: Tensor, text: Tensor) -> Tensor:
        return retain_loss(image, text, model.logit_scale)

    _gradient_pass(model, inputs.retain_images, inputs.retain_captions, loss, method, "retain", tell)


@torch.no_grad()
def search_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """One forward pass over the images of the search split and the texts of all classes."""
    pixels = torch.as_tensor(inputs.search_images)
    tokens = model.tokenize(fill_templates(inputs.class_names, inputs.templates))
    for rows in _pieces(len(pixels), method, "search", tell):
        model.image_features(model.preprocess(pixels[rows]))
    for rows in _pieces(len(tokens), method, "search texts", tell):
        model.text_features(tokens[rows])


def preprocess_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """Every image of the three sets from bytes to model input on the device: the host's share of the work."""
    for images in (inputs.forget_images, inputs.retain_images, inputs.search_images):
        pixels = torch.as_tensor(images)
        for rows in _pieces(len(pixels), method, "preprocess", tell):
            model.preprocess(pixels[rows])


def _pieces(n: int, method: Method, what: str, tell: Tell) -> Iterator[Tensor]:
    """Row numbers, `micro_batch` at a time; `tell` hears of every piece that is done."""
    for rows in torch.split(torch.arange(n), method.micro_batch):
        yield rows
        tell(what, int(rows[-1]) + 1, n)


def _gradient_pass(
    model: ClipModel,
    images: Images,
    captions: Sequence[str],
    loss: Callable[[Tensor, Tensor], Tensor],
    method: Method,
    what: str,
    tell: Tell,
) -> None:
    tokens, pixels = model.tokenize(captions), torch.as_tensor(images)
    layers = [c.name for c in model.candidates()]
    with requiring_grad(model.net, layers):
        for rows in _pieces(len(pixels), method, what, tell):
            image = model.image_features(model.preprocess(pixels[rows]))
            found = loss(image, model.text_features(tokens[rows]))
            torch.autograd.grad(found, [model.parameters[layer] for layer in layers], allow_unused=True)
