"""Work that no method can avoid, by open_clip's own code: the measure of `bench.limit`.

Tell is called with (what, items done, items).
"""

from collections.abc import Iterator

import torch

from contracts.values import Method
from tasks.progress import Tell
from unlearning.families.clip import ClipModel
from unlearning.inplace import requiring_grad
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import UnlearnInputs
from unlearning.zero_shot import fill_templates


def forget_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """One forward and one backward pass over the forget set, to every candidate tensor."""
    tokens, pixels = model.tokenize(inputs.forget_captions), torch.as_tensor(inputs.forget_images)
    layers = [c.name for c in model.candidates()]
    with requiring_grad(model.net, layers):
        for rows in _pieces(len(pixels), method, "forget", tell):
            image = model.image_features(model.preprocess(pixels[rows]))
            _backward(model, layers, forget_loss(image, model.text_features(tokens[rows])))


def retain_pass(model: ClipModel, inputs: UnlearnInputs, method: Method, tell: Tell) -> None:
    """The same over the retain set, with the contrastive loss."""
    tokens, pixels = model.tokenize(inputs.retain_captions), torch.as_tensor(inputs.retain_images)
    layers = [c.name for c in model.candidates()]
    with requiring_grad(model.net, layers):
        for rows in _pieces(len(pixels), method, "retain", tell):
            image = model.image_features(model.preprocess(pixels[rows]))
            loss = retain_loss(image, model.text_features(tokens[rows]), model.logit_scale)
            _backward(model, layers, loss)


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


def _pieces(n: int, method: Method, what: str, tell: Tell) -> Iterator[torch.Tensor]:
    """Row numbers, `micro_batch` at a time; `tell` hears of every piece that is done."""
    for rows in torch.split(torch.arange(n), method.micro_batch):
        yield rows
        tell(what, int(rows[-1]) + 1, n)


def _backward(model: ClipModel, layers: list[str], loss: torch.Tensor) -> None:
    torch.autograd.grad(loss, [model.parameters[layer] for layer in layers], allow_unused=True)
