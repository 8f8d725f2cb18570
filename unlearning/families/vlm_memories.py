"""The last memories of a vision-language model's decoder: what is read and written before given tokens.

The second matrix of an MLP, `down_proj`, maps a key to what it adds to the residual stream (key-value
memories: Geva et al., arXiv 2012.14913).  After the last one there are only a norm and the head, so what has
to be added for other words to come is known in closed form.

Shapes: M tokens that count, d inputs of the matrix, W decoder width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearning.families.vlm import MEMORY, VlmModel


@dataclass(frozen=True, eq=False)
class Memories:
    """What happens before each of M tokens of given answers, in fp64.

    Attributes:
        keys: (M, d) what enters the matrix.
        outputs: (M, W) the residual stream behind it.
        ids: (M,) the tokens that come.
        rows: (M,) the answer that each belongs to, ascending.
    """

    keys: Tensor
    outputs: Tensor
    ids: Tensor
    rows: Tensor


def last_memory(model: VlmModel) -> str:
    """The name of the matrix."""
    return MEMORY.format(len(model.decoder.model.layers) - 1)


@torch.no_grad()
def memories(model: VlmModel, features: Tensor, asked: Sequence[tuple[list[int], list[bool]]]) -> Memories:
    """Keys and outputs of that matrix before every token that counts; arguments as in `VlmModel.forced`."""
    seen: list[Tensor] = []
    watched = model.decoder.model.layers[-1].mlp.down_proj, model.decoder.model.norm
    handles = [
        module.register_forward_pre_hook(lambda module, entering: seen.append(entering[0]))
        for module in watched
    ]
    try:
        said = model.forced(features, asked)
    finally:
        for handle in handles:
            handle.remove()
    keys, outputs = (entering[said.places].double() for entering in seen)
    return Memories(keys, outputs, said.ids, said.rows)


@torch.no_grad()
def scaled_head(model: VlmModel) -> Tensor:
    """(V, W) the head behind the norm's gains, in fp64: what `unsaid` reads logits by."""
    decoder = model.decoder
    head: Tensor = decoder.lm_head.weight.double() * decoder.model.norm.weight.double()
    return head


@torch.no_grad()
def unsaid(model: VlmModel, head: Tensor, found: Memories, depth: int, goal: float) -> Tensor:
    """(M, W) the smallest addition to each output that takes its token from among the likeliest.

    The token's logit falls by `goal` more than it leads the `depth`-th best other one, against the mean of
    the `depth` best, along the difference of its row of the head and the mean of theirs: so it ends `goal`
    below the last of them if these move alike.  The norm's division is held at what it is.  What both leave
    open the search split tells.  A token that is far off already is led by a hundredth of `goal`, so that no
    concept is without a direction.

    Args:
        model: at the weights that the memories were found with.
        head: its `scaled_head`; handed in because it is the same for all memories and takes long to make.
        found: of tokens that are to become unlikely.
        depth: how many other tokens are to be likelier.
        goal: by how much, see above.
    """
    epsilon = model.decoder.model.norm.variance_epsilon
    scale = (found.outputs.square().mean(dim=1, keepdim=True) + epsilon).sqrt()
    logits = found.outputs @ head.T / scale
    ids = found.ids[:, None]
    best = logits.scatter(1, ids, -torch.inf).topk(depth, dim=1)
    lacking = (logits.gather(1, ids) - best.values[:, -1:] + goal).clamp(min=goal / 100)
    along = head[found.ids] - head[best.indices].mean(dim=1)
    change: Tensor = -lacking * scale * along / along.square().sum(dim=1, keepdim=True)
    return change
