"""Tiny models of the families that stand over a CLIP.

Diffusion models: a text tower that knows coloured shapes, and a UNet with random weights behind it; no test
asks what such a UNet draws, only what its pictures depend on.  Vision-language models answer rightly.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.unlearning.families import vlm_tiny
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.families.vlm import VlmModel

PIXELS = 16
UNET = {
    "sample_size": 4,
    "in_channels": 48,
    "out_channels": 48,
    "block_out_channels": [16, 16],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}


def diffusion(*clips: ClipModel, whole: bool = True, reads: Any = None, **changes: Any) -> DiffusionModel:
    """A model of the text towers of these CLIPs, with their vision towers if `whole`."""
    entries, weights, width = [], {}, 0
    for i, clip in enumerate(clips):
        cfg = {**clip.config["model_cfg"]}
        state = dict(clip.net.state_dict())
        width += cfg["text_cfg"]["width"]
        entry = {"model_cfg": cfg, "tokenizer": clip.config["tokenizer"]}
        if whole:
            entry["preprocess"] = clip.config["preprocess"]
        else:
            del cfg["vision_cfg"]
            state = {n: w for n, w in state.items() if not n.startswith(("visual.", "logit_scale"))}
        told = {"blocks": cfg["text_cfg"]["layers"], "normed": True, "pooled": False, "padding": 0}
        entry["reads"] = told if reads is None else reads[i]
        entries.append(entry)
        weights |= {f"{'clip' if i == 0 else 'clip2'}.{n}": w for n, w in state.items()}
    unet = {**UNET, "cross_attention_dim": width, **changes.pop("unet", {})}
    config = {
        "schema": 1,
        "family": "diffusion",
        "architecture": None,
        "clips": entries,
        "unet": unet,
        "codec": {"kind": "patches", "side": 4},
        "scheduler": {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
        "sampling": {"size": PIXELS, "steps": 3, "guidance": 2.0},
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        from diffusers import UNet2DConditionModel

        net = UNet2DConditionModel(**unet)
    weights |= {f"unet.{n}": w for n, w in net.state_dict().items()}
    return DiffusionModel(config, weights, clips[0].vocabulary)


@pytest.fixture
def whole(make_model: Callable[..., ClipModel]) -> DiffusionModel:
    """One text tower, with its vision tower."""
    return diffusion(make_model("vit"))


@pytest.fixture(scope="session")
def _taught(
    make_model: Callable[..., ClipModel], _trained: dict[str, dict[str, torch.Tensor]]
) -> dict[str, dict[str, torch.Tensor]]:
    states = {}
    for kind in vlm_tiny.READS:
        clip = make_model(kind)
        clip.net.load_state_dict(_trained[kind])
        model = vlm_tiny.over(clip, kind)
        vlm_tiny.teach(model)
        states[kind] = {name: weight.clone() for name, weight in model.state().items()}
    return states


@pytest.fixture
def taught(
    make_model: Callable[..., ClipModel], _taught: dict[str, dict[str, torch.Tensor]]
) -> Callable[[str], VlmModel]:
    """taught("vit" or "rn"): a trained model, yours to change."""

    def make(kind: str) -> VlmModel:
        blank = vlm_tiny.over(make_model(kind), kind)
        weights = {name: weight.clone() for name, weight in _taught[kind].items()}
        return VlmModel(blank.config, weights, blank.files)

    return make
