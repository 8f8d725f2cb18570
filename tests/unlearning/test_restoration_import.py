"""Importing published restoration checkpoints."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from contracts.errors import ModelError
from tests.unlearning.restoration_tiny import ARCHITECTURES, NEVER_RUN, SIZES, images, tiny
from unlearning.families.restoration import RestorationModel, build_network, configuration

Weights = dict[str, torch.Tensor]

# Names and shapes as the published networks have them: ours have to be these, not only consistent.
PUBLISHED = {
    "promptir": {
        "patch_embed.proj.weight": (48, 3, 3, 3),
        "prompt3.prompt_param": (1, 5, 320, 16, 16),
        "prompt3.linear_layer.weight": (5, 384),
        "prompt3.linear_layer.bias": (5,),
        "prompt1.conv3x3.weight": (64, 64, 3, 3),
        "encoder_level1.3.norm1.body.bias": (48,),
        "encoder_level2.5.attn.temperature": (2, 1, 1),
        "encoder_level2.5.attn.qkv.weight": (288, 96, 1, 1),
        "encoder_level2.5.attn.qkv_dwconv.weight": (288, 1, 3, 3),
        "encoder_level2.5.attn.project_out.weight": (96, 96, 1, 1),
        "encoder_level2.5.norm2.body.weight": (96,),
        "latent.7.ffn.project_in.weight": (2042, 384, 1, 1),
        "latent.7.ffn.dwconv.weight": (2042, 1, 3, 3),
        "latent.7.ffn.project_out.weight": (384, 1021, 1, 1),
        "down1_2.body.0.weight": (24, 48, 3, 3),
        "down3_4.body.0.weight": (96, 192, 3, 3),
        "up4_3.body.0.weight": (384, 192, 3, 3),
        "up3_2.body.0.weight": (384, 192, 3, 3),
        "up2_1.body.0.weight": (192, 96, 3, 3),
        "noise_level3.attn.qkv.weight": (2112, 704, 1, 1),
        "noise_level1.attn.temperature": (4, 1, 1),
        "reduce_noise_level3.weight": (192, 704, 1, 1),
        "reduce_noise_level2.weight": (192, 320, 1, 1),
        "reduce_noise_level1.weight": (96, 160, 1, 1),
        "reduce_chan_level3.weight": (192, 288, 1, 1),
        "reduce_chan_level2.weight": (96, 192, 1, 1),
        "decoder_level1.3.attn.temperature": (1, 1, 1),
        "refinement.3.ffn.project_in.weight": (510, 96, 1, 1),
        "output.weight": (3, 96, 3, 3),
    },
    "adair": {
        "up4_3.body.0.weight": (768, 384, 3, 3),
        "reduce_chan_level3.weight": (192, 384, 1, 1),
        "fre1.conv1.weight": (384, 3, 3, 3),
        "fre1.para1": (384, 1, 1),
        "fre2.para2": (192, 1, 1),
        "fre2.channel_cross_l.temperature": (4, 1, 1),
        "fre2.channel_cross_l.q.weight": (192, 192, 1, 1),
        "fre2.channel_cross_h.q_dwconv.weight": (192, 1, 3, 3),
        "fre2.channel_cross_h.kv.weight": (384, 192, 1, 1),
        "fre3.channel_cross_agg.kv_dwconv.weight": (192, 1, 3, 3),
        "fre3.channel_cross_agg.project_out.weight": (96, 96, 1, 1),
        "fre3.frequency_refine.SpatialGate.spatial.weight": (1, 2, 7, 7),
        "fre3.frequency_refine.ChannelGate.mlp.0.weight": (6, 96, 1, 1),
        "fre3.frequency_refine.ChannelGate.mlp.2.weight": (96, 6, 1, 1),
        "fre3.frequency_refine.proj.weight": (96, 96, 1, 1),
        "fre3.frequency_refine.proj.bias": (96,),
        "fre1.rate_conv.0.weight": (48, 384, 1, 1),
        "fre1.rate_conv.2.weight": (2, 48, 1, 1),
    },
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_have_the_published_names_and_shapes(architecture: str) -> None:
    with torch.device("meta"):
        shapes = {
            n: tuple(w.shape) for n, w in build_network(configuration(architecture, {})).state_dict().items()
        }
    assert shapes == shapes | PUBLISHED[architecture]


def published(architecture: str) -> Weights:
    """All that a published file of the tiny size would hold, under its names."""
    return tiny(architecture).net.state_dict() | {name: torch.ones(2) for name in NEVER_RUN[architecture]}


def as_lightning(path: Path, weights: Weights) -> Path:
    nested = {
        "epoch": 119,
        "pytorch-lightning_version": "2.0.1",
        "state_dict": {f"net.{name}": tensor for name, tensor in weights.items()},
        "callbacks": {"ModelCheckpoint": {"best_model_score": None, "dirpath": "ckpt"}},
        "hyper_parameters": {},
    }
    torch.save(nested, path.with_suffix(".ckpt"))
    return path.with_suffix(".ckpt")


def as_plain(path: Path, weights: Weights) -> Path:
    torch.save(weights, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_halves(path: Path, weights: Weights) -> Path:
    return as_plain(path, {name: tensor.half() for name, tensor in weights.items()})


def as_safetensors(path: Path, weights: Weights) -> Path:
    save_file({f"net.{name}": tensor for name, tensor in weights.items()}, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("write", [as_lightning, as_plain, as_safetensors])
def test_a_published_checkpoint_becomes_a_model_folder(
    architecture: str, write: Callable[[Path, Weights], Path], tmp_path: Path
) -> None:
    checkpoint = write(tmp_path / "published", published(architecture))
    RestorationModel.from_published(architecture, checkpoint, SIZES[architecture]).save(tmp_path / "model")
    loaded = RestorationModel.load(tmp_path / "model")
    assert torch.equal(loaded.restore(images()), tiny(architecture).restore(images()))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    checkpoint = as_halves(tmp_path / "published", published("promptir"))
    model = RestorationModel.from_published("promptir", checkpoint, SIZES["promptir"])
    wanted = tiny("promptir").parameters["output.weight"].half().float()
    assert torch.equal(model.parameters["output.weight"], wanted)


def changed(architecture: str, drop: str = "", **add: Any) -> Weights:
    return {name: w for name, w in published(architecture).items() if name != drop} | add


@pytest.mark.parametrize(
    ("architecture", "content", "message"),
    [
        (
            "promptir",
            lambda: changed("promptir", beta=torch.ones(1), alpha=torch.ones(1)),
            "published.ckpt holds net.alpha, unknown to promptir of this size",
        ),
        (
            "adair",
            lambda: published("promptir"),
            "published.ckpt holds net.chnl_reduce1.weight, unknown to adair",
        ),
        ("promptir", lambda: published("adair"), "published.ckpt holds net.fre1.channel_cross_agg.kv.weight"),
        ("adair", lambda: changed("adair", drop="fre1.para1"), "the weights lack fre1.para1"),
        (
            "promptir",
            lambda: changed("promptir", drop="") | {"output.weight": torch.ones(3, 96, 3, 3)},
            r"output.weight is torch.float32 \(3, 96, 3, 3\), expected torch.float32 \(3, 16, 3, 3\)",
        ),
        (
            "promptir",
            lambda: published("promptir") | {"output.weight": torch.full((3, 16, 3, 3), float("nan"))},
            "output.weight holds values that are not finite",
        ),
        ("airnet", dict, "unknown restoration architecture 'airnet'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    architecture: str, content: Callable[[], Weights], message: str, tmp_path: Path
) -> None:
    checkpoint = as_lightning(tmp_path / "published", content())
    with pytest.raises(ModelError, match=message):
        RestorationModel.from_published(architecture, checkpoint, SIZES.get(architecture))


def test_a_file_that_would_need_unpickling_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": published("adair"), "when": date(2024, 3, 21)}, tmp_path / "published.ckpt")
    with pytest.raises(
        ModelError, match=r"published.ckpt holds more than tensors; convert it to safetensors"
    ):
        RestorationModel.from_published("adair", tmp_path / "published.ckpt", SIZES["adair"])
