"""Train the two projections of a CLIP whose towers stay as they are, on features computed once.

What enters the projections does not change while they are trained, so every view of every drawing and
every text passes its tower once; a step then is two small matrix products.  The loss is that of the
reference model (`data.train`): symmetric contrastive over distinct concepts, plus which hand drew what.

Shapes: V views, N drawings, M texts, C concepts, H hands, T templates, B drawings of a step,
F and W widths of image and text features, D embedding width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.values import Tower
from unlearning.families.clip import ClipModel
from unlearning.request import Progress
from unlearning.zero_shot import fill_templates

MICRO_BATCH = 64
MAX_SCALE = math.log(100)


@dataclass(frozen=True)
class Options:
    """How the projections are trained; chosen on the search hand.

    views: drawings as drawn, and this many less one random views.
    own_caption: share of steps' texts that are the drawing's own caption, not a template with its name.
    dropout: share of image features left out in a step.
    hand_weight: of the loss of telling hands apart.
    """

    views: int = 2
    steps: int = 600
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    own_caption: float = 0.3
    dropout: float = 0.1
    hand_weight: float = 0.3


OPTIONS = Options()


@dataclass(frozen=True, eq=False)
class Drawings:
    """What is trained on.

    Attributes:
        views: V times uint8 (N, S, S, 3).
        captions: N texts.
        objects: (N,) index of the concept.
        hands: (N,) index of the hand.
    """

    views: Sequence[Any]
    captions: Sequence[str]
    objects: Tensor
    hands: Tensor


def train(
    model: ClipModel,
    drawings: Drawings,
    names: Mapping[str, Sequence[str]],
    templates: Mapping[str, Sequence[str]],
    progress: Progress,
    options: Options = OPTIONS,
) -> None:
    """Train the projections and the logit scale of `model` in place; every draw is torch's own.

    Args:
        model: pretrained towers (`clip_timm_hf`) with a bias after the image projection.
        drawings: what is trained on, with at least one drawing of every concept.
        names: C names of the axis "object" and H names of the axis "style".
        templates: of each axis, with one {} each.
        progress: told what is being done.
        options: how.
    """
    images = torch.stack(
        [
            _before_projection(model, "vision", view, progress, f"image features, view {i}")
            for i, view in enumerate(drawings.views)
        ]
    )
    named, styled = (fill_templates(names[axis], templates[axis]) for axis in ("object", "style"))
    table = [*drawings.captions, *named, *styled]
    read = _before_projection(model, "text", table, progress, "text features")
    own_read, named_read, styled_read = torch.split(read, [len(drawings.captions), len(named), len(styled)])
    _fit(
        model,
        images,
        own_read,
        named_read.reshape(len(templates["object"]), len(names["object"]), -1),
        styled_read.reshape(len(templates["style"]), len(names["style"]), -1),
        drawings,
        options,
        progress,
    )


@torch.no_grad()
def _before_projection(model: ClipModel, tower: Tower, items: Any, progress: Progress, what: str) -> Tensor:
    """What the last stage of a tower gets to see: (N, F) of images, (N, W) of texts."""
    staged, done = model.staged(tower), []
    for rows in torch.split(torch.arange(len(items)), 4 * MICRO_BATCH):
        some = items[rows[0] : rows[-1] + 1]
        batches = (
            model.image_batches(some)
            if tower == "vision"
            else model.text_batches(some, torch.zeros(len(some)))
        )
        entering = staged.run(batches, 0, len(staged.stages) - 1, MICRO_BATCH)
        order = torch.cat([batch.rows for batch in entering]).argsort()
        done.append(torch.cat([batch.own for batch in entering])[order])
        progress(what, int(rows[-1]) + 1, len(items))
    return torch.cat(done)


def _fit(
    model: ClipModel,
    images: Tensor,
    own: Tensor,
    named: Tensor,
    styled: Tensor,
    drawings: Drawings,
    options: Options,
    progress: Progress,
) -> None:
    """Images (V, N, F), own captions (N, W), named (T, C, W) and styled (T, H, W) texts."""
    # Pooled activations are positive and of very different size: standardised they train evenly, and the
    # standardisation is folded into the projection at the end.
    centre, spread = images.mean((0, 1)), images.std((0, 1)) + 1e-6
    length = own.norm(dim=-1).mean()
    images, own, named, styled = (images - centre) / spread, own / length, named / length, styled / length
    n_dims, width = model.parameters["text.proj.weight"].shape
    image_weight = nn.Parameter(torch.randn(n_dims, len(centre)) / math.sqrt(len(centre)))
    image_bias = nn.Parameter(torch.zeros(n_dims))
    # Orthogonal rows: what the published text features say of each other's likeness is where it starts.
    text_weight = nn.Parameter(nn.init.orthogonal_(torch.empty(n_dims, width)))
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    optimizer = torch.optim.AdamW(
        [
            {"params": [image_weight, text_weight], "weight_decay": options.weight_decay},
            {"params": [image_bias, scale], "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.learning_rate, options.steps)
    # Rows in order of concept: concept c has `counts[c]` of them, from `first[c]` on.
    in_order, counts = drawings.objects.argsort(stable=True), drawings.objects.bincount()
    first = counts.cumsum(0) - counts
    for step in range(options.steps):
        concepts = torch.randperm(len(counts))[: options.batch]
        rows = in_order[first[concepts] + (torch.rand(len(concepts)) * counts[concepts]).long()]
        seen = images[torch.randint(len(images), (len(rows),)), rows]
        seen = functional.dropout(seen, options.dropout)
        said = named[torch.randint(len(named), (len(rows),)), concepts]
        said = torch.where(torch.rand(len(rows), 1) < options.own_caption, own[rows], said)
        hands = styled[torch.randint(len(styled), ())]
        image = scale.exp() * functional.normalize(seen @ image_weight.T + image_bias, dim=-1)
        text = functional.normalize(torch.cat([said, hands]) @ text_weight.T, dim=-1)
        logits, target = image @ text[: len(rows)].T, torch.arange(len(rows))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        told = functional.cross_entropy(image @ text[len(rows) :].T, drawings.hands[rows])
        optimizer.zero_grad()
        (loss + options.hand_weight * told).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            scale.clamp_(0, MAX_SCALE)
        progress("projection", step + 1, options.steps)
    trained = {
        "visual.head.proj.weight": image_weight / spread,
        "visual.head.proj.bias": image_bias - image_weight @ (centre / spread),
        "text.proj.weight": text_weight / length,
        "logit_scale": scale,
    }
    with torch.no_grad():
        for name, value in trained.items():
            model.parameters[name].copy_(value)
