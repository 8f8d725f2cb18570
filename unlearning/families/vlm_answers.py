"""The loss of names in a vision-language model's answers, and its gradient.

The paper (arXiv 2407.11867, section 4.3) takes gradients of the matching CLIP model's cosine loss and
counts answers that contain the name.  Here gradients are taken of the answers themselves:

    loss = mean over items, of the mean over the name's tokens, of -log p(token | image, all text before it)

Forgetting *ascends* it, as it ascends the cosine loss, so steps have the same sign.

Shapes: n images asked for, T image tokens, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError
from unlearning.accumulation import Gradients, mean_gradient
from unlearning.families import Watch
from unlearning.families.clip import Images
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_decoder import AnswerTask
from unlearning.inplace import requiring_grad


@dataclass(frozen=True, eq=False)
class NameLoss:
    """How a model takes to given names.

    Attributes:
        loss: (n,) mean negative log-likelihood of the name's tokens.
        margin: (n,) by how much the logits of the name's tokens exceed the `depth`-th best others, at the
            worst token: not negative while every token is among the `depth` likeliest.
    """

    loss: Tensor
    margin: Tensor


def name_loss(
    model: VlmModel, features: Tensor, names: Sequence[str], task: AnswerTask, depth: int = 1
) -> NameLoss:
    """Loss and margin of one name for each image, by the features (n, T, C); differentiable."""
    forced = model.forced(features, [task.asked(model.chat, name) for name in names])
    each = functional.cross_entropy(forced.logits, forced.ids, reduction="none")
    own = forced.logits.gather(1, forced.ids[:, None])
    others = forced.logits.scatter(1, forced.ids[:, None], -torch.inf).topk(depth, dim=1).values[:, -1]
    rows, zeros = forced.rows, each.new_zeros(len(names))
    count = zeros.index_add(0, rows, torch.ones_like(each))
    worst = zeros.new_full((len(names),), torch.inf).scatter_reduce(0, rows, own[:, 0] - others, "amin")
    return NameLoss(zeros.index_add(0, rows, each) / count, worst)


def answer_gradient(
    model: VlmModel,
    images: Images,
    names: Sequence[str],
    layers: Sequence[str],
    micro_batch: int,
    task: AnswerTask,
    *,
    watch: Watch | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Gradients:
    """Gradient of the mean loss of the names over all items, for the named layers.

    Args:
        model: at the weights to differentiate at; they stay as they are.
        images: uint8 (N, H, W, 3).
        names: N names, each shown by its image.
        layers: weight names.
        micro_batch: items at a time; decides memory, not the result.
        task: the question.
        watch: shown the loss of every micro-batch.
        progress: called with (items done, items).

    Raises:
        InputError: there are no items, or not as many names as images.
        ModelError: a gradient is not finite (the message names the tensor).
    """
    n = len(images)
    if n == 0 or n != len(names):
        raise InputError(f"{n} images and {len(names)} names do not make a set of pairs")
    pixels = torch.as_tensor(images)

    def losses(rows: Tensor) -> Iterator[Tensor]:
        features = model.features(pixels[rows], micro_batch)
        yield name_loss(model, features, [names[i] for i in rows], task).loss.mean()

    with requiring_grad(model.net, layers):
        return mean_gradient(model, layers, n, micro_batch, losses, watch=watch, progress=progress)
