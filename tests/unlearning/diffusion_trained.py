"""A small text-to-image model that draws four blocks on five grounds, its judge, and a request to it.

The blocks stand for objects, the grounds for the hands that draw them.
"""

import io
from functools import cache
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from contracts.values import Method
from data.emoji_grid import Grid, caption
from data.layout import concept_id, style_id
from data.train_diffusion import new_model
from unlearning.denoising import Draws, neutral
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.families.diffusion_request import DiffusionRequest, Drawings
from unlearning.families.diffusion_split import Judged, Prompts
from unlearning.judge import Judge, JudgeConfig, JudgeNet, to_pixels

SIDE = 16
BLOCKS = {"ruby": (220, 30, 40), "jade": (30, 170, 80), "azure": (40, 70, 230), "amber": (235, 190, 30)}
GROUNDS = {
    "chalk": (245, 245, 245),
    "slate": (90, 100, 115),
    "sand": (225, 200, 160),
    "moss": (110, 140, 90),
    "plum": (140, 80, 140),
}
UNSEEN_BLOCK, UNSEEN_GROUND = ("coal", (10, 10, 10)), ("sky", (150, 205, 250))
TEMPLATES = ["a {}", "one {} block", "this {}"]
STEPS = 300
OPTIONS: dict[str, Any] = {
    "seed": 3,
    "size": SIDE,
    "patch": 4,
    "sampling": {"steps": 4, "guidance": 1.5},
    "unet": {
        "block_out_channels": [32],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "attention_head_dim": 4,
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
    },
}
METHOD = Method(name="slug", towers=("text",), forget_at=1, forget_target=0.0, micro_batch=8, search_steps=6)
CLASS_IDS = tuple(concept_id(name) for name in (*BLOCKS, UNSEEN_BLOCK[0]))


def picture(block: str, ground: str) -> NDArray[np.uint8]:
    """The drawing (SIDE, SIDE, 3) of a block on a ground."""
    drawn = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    drawn[:] = dict([*GROUNDS.items(), UNSEEN_GROUND])[ground]
    drawn[4:12, 4:12] = dict([*BLOCKS.items(), UNSEEN_BLOCK])[block]
    return drawn


def drawings() -> pd.DataFrame:
    """Every block on every ground, as rows of a corpus."""
    rows = []
    for block in (*BLOCKS, UNSEEN_BLOCK[0]):
        for ground in (*GROUNDS, UNSEEN_GROUND[0]):
            out = io.BytesIO()
            Image.fromarray(picture(block, ground)).save(out, "PNG")
            rows.append(
                {
                    "object": concept_id(block),
                    "style": style_id(ground),
                    "name": block,
                    "style_name": ground,
                    "family": "block",
                    "keywords": ["block"],
                    "png": out.getvalue(),
                }
            )
    return pd.DataFrame(rows)


def grid() -> Grid:
    """What the model draws, and the block that it never drew."""
    return Grid(tuple(concept_id(name) for name in BLOCKS), (concept_id(UNSEEN_BLOCK[0]),), tuple(GROUNDS))


def untrained(seed: int = 0) -> DiffusionModel:
    """The same model with random weights."""
    text_cfg = {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    model_cfg = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 16, "head_width": 16, "patch_size": 8, "image_size": SIDE},
        "text_cfg": text_cfg,
    }
    config = {
        "schema": 1,
        "family": "clip",
        "architecture": None,
        "model_cfg": model_cfg,
        "preprocess": {"size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"},
        "tokenizer": {"kind": "simple", "context_length": 12, "vocab": None},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return new_model(ClipModel(config, open_clip.model.CLIP(**model_cfg).state_dict()), OPTIONS)


@cache
def _trained() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model = untrained()
    with torch.random.fork_rng():
        _learn(model)
    return dict(model.config), {n: t.detach().clone() for n, t in model.net.state_dict().items()}


def _learn(model: DiffusionModel) -> None:
    """All drawings in every batch, in the words of one template after the other, or in none."""
    cells = [(block, ground) for block in BLOCKS for ground in GROUNDS]
    start, n = model.encode(np.stack([picture(*cell) for cell in cells])), len(cells)
    texts = [[caption(template, *cell) for cell in cells] for template in TEMPLATES]
    with torch.no_grad():
        told = [model.conditioning(model.tokenize(own)) for own in texts]
    generator, rate = torch.Generator().manual_seed(0), 0.008
    optimizer = torch.optim.AdamW(model.unet.requires_grad_(True).parameters(), fused=True)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / STEPS)
        places = torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)
        times = (places / n * model.scheduler.config["num_train_timesteps"]).long()
        noise = torch.randn(start.shape, generator=generator)
        text = model.unconditional(n) if step % 10 == 9 else told[step % len(told)]
        said = model.predict(model.scheduler.add_noise(start, noise, times), times, text)
        loss = (said - model.scheduler.get_velocity(start, noise, times)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.unet.eval().requires_grad_(False)


def trained() -> DiffusionModel:
    """The model, anew at each call."""
    config, weights = _trained()
    return DiffusionModel(config, weights)


@cache
def judge() -> Judge:
    """Tells all blocks and grounds apart, in drawings that are noisy."""
    shown = drawings()
    objects, styles = (tuple(dict.fromkeys(shown[axis])) for axis in ("object", "style"))
    # Channels last, oneDNN 3.12 without AVX-512 writes past its buffers in the backward pass of a 1x1 kernel
    # of stride 2 over four channels, as this judge has.
    pixels = to_pixels(
        np.stack([picture(*names) for names in shown[["name", "style_name"]].to_numpy()])
    ).contiguous()
    wanted = [
        torch.tensor([ids.index(one) for one in shown[axis]])
        for axis, ids in (("object", objects), ("style", styles))
    ]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = JudgeNet(4, len(objects), len(styles))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(80):
            said = net(pixels + 0.1 * torch.randn(pixels.shape))
            loss = sum(functional.cross_entropy(own, label) for own, label in zip(said, wanted, strict=False))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return Judge(JudgeConfig(1, SIDE, 4, objects, styles), net.state_dict())


def prompts(template: str, seeds: range, blocks: tuple[str, ...] = tuple(BLOCKS)) -> Prompts:
    """A prompt for every block on every ground, with every seed."""
    cells = [(b, g, s) for b in blocks for g in GROUNDS for s in seeds]
    return Prompts(
        tuple(caption(template, b, g) for b, g, _ in cells),
        tuple(s for _, _, s in cells),
        np.array([list(BLOCKS).index(b) for b, _, _ in cells]),
        np.array([list(GROUNDS).index(g) for _, g, _ in cells]),
    )


def judging(pictures: np.ndarray) -> Judged:
    """What the judge says, blocks first."""
    said = judge()(pictures)
    return Judged(said.objects, said.styles)


def _drawings(cells: list[tuple[str, str]]) -> Drawings:
    return Drawings(
        np.stack([picture(*cell) for cell in cells]),
        tuple(caption(TEMPLATES[0], *cell) for cell in cells),
        np.array([list(BLOCKS).index(block) for block, _ in cells]),
    )


def neutral_captions(target: str = "ruby") -> list[str]:
    """Of the two drawings of a block that a request shows, with other blocks in its place."""
    others = [name for name in BLOCKS if name != target]
    return [caption(TEMPLATES[0], others[i], ground) for i, ground in enumerate(("chalk", "moss"))]


def request(target: str = "ruby", model: DiffusionModel | None = None, **changes: Any) -> DiffusionRequest:
    """To forget a block, of which two drawings are shown; the goal is a model's reading of others."""
    others = [name for name in BLOCKS if name != target]
    told: dict[str, Any] = {
        "class_ids": CLASS_IDS,
        "targets": (list(BLOCKS).index(target),),
        "forget": _drawings([(target, ground) for ground in ("chalk", "moss")]),
        "goal": None if model is None else neutral(model, neutral_captions(target)),
        "retain": _drawings([(block, ground) for block in others for ground in ("chalk", "slate")]),
        "search": prompts(TEMPLATES[1], range(7, 9)),
        "judging": judging,
        "draws": Draws(count=2),
    }
    return DiffusionRequest(**{**told, **changes})
