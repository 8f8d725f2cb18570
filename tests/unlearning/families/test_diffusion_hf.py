"""diffusers' layout: exact names both ways, the same conditioning and pictures as diffusers' own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from contracts.errors import ModelError
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.families.diffusion_hf import from_diffusers, to_diffusers
from unlearning.families.diffusion_hf_names import from_hf_text, to_hf_text

TEXTS = ["a red square", "", "a drawing of a blue cross."]
END = 813


def hf_config(layers: int, **changes: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=814,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=812,
        eos_token_id=END,
        pad_token_id=END,
        projection_dim=24,
        **changes,
    )


def write_tokenizer(folder: Path, pad: str) -> Any:
    """transformers' CLIP tokenizer with the first 300 merges of the published vocabulary."""
    import gzip

    from transformers import CLIPTokenizer

    lines = gzip.decompress(Path(open_clip.tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    merges = lines[1:301]
    byte = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = [*byte, *(b + "</w>" for b in byte), *(m.replace(" ", "") for m in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"pad_token": pad, "model_max_length": 12, "tokenizer_class": "CLIPTokenizer"})
    )
    return CLIPTokenizer.from_pretrained(folder, pad_token=pad, model_max_length=12)


def pipeline(folder: Path, kind: str) -> Any:
    """A tiny pipeline of diffusers with random weights, saved under `folder`/pipe."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    is_xl = kind == "SDXL"
    unet: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 64 if is_xl else 32,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    if is_xl:
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 48,
        }
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    parts = {
        "vae": vae,
        "unet": UNet2DConditionModel(**unet),
        "scheduler": DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        "text_encoder": CLIPTextModel(hf_config(3, hidden_act="quick_gelu")),
        "tokenizer": write_tokenizer(folder / "tokenizer", "<|endoftext|>"),
    }
    if is_xl:
        parts["text_encoder_2"] = CLIPTextModelWithProjection(hf_config(2, hidden_act="gelu"))
        parts["tokenizer_2"] = write_tokenizer(folder / "tokenizer_2", "!")
        pipe = StableDiffusionXLPipeline(**parts)
    else:
        pipe = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.set_progress_bar_config(disable=True)
    for net in (pipe.unet, pipe.vae, pipe.text_encoder, *([pipe.text_encoder_2] if is_xl else [])):
        net.eval()
        for name, weight in net.named_parameters():  # norms start at one and zero, alike in every block
            if "norm" in name:
                torch.nn.init.normal_(weight, mean=float(name.endswith("weight")), std=0.1)
    pipe.save_pretrained(folder / "pipe", safe_serialization=True)
    return pipe


@pytest.fixture(params=["SD", "SDXL"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, DiffusionModel]:
    pipe = pipeline(tmp_path, request.param)
    return request.param, pipe, from_diffusers(tmp_path / "pipe")


@torch.no_grad()
def test_the_unet_is_told_what_diffusers_tells_it(pair: tuple[str, Any, DiffusionModel]) -> None:
    kind, pipe, model = pair
    told = model.conditioning(model.tokenize(TEXTS))
    if kind == "SD":
        expected, _ = pipe.encode_prompt(TEXTS, "cpu", 1, False)
    else:
        expected, _, pooled, _ = pipe.encode_prompt(TEXTS, device="cpu", do_classifier_free_guidance=False)
        torch.testing.assert_close(told.pooled, pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(told.states, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pictures_are_those_of_diffusers(pair: tuple[str, Any, DiffusionModel]) -> None:
    from unlearning.drawing import draw, noise

    kind, pipe, model = pair
    start = noise(model, [1, 2])
    expected = pipe(
        TEXTS[:2],
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=start,
        output_type="np",
        **({} if kind == "SD" else {"height": 16, "width": 16}),
    ).images
    found = draw(model, TEXTS[:2], [1, 2], steps=3, guidance=3.0)
    assert np.abs(found.astype(float) - 255 * np.asarray(expected)).max() <= 1.01


def test_a_pipeline_that_was_read_and_written_is_the_same_and_an_edit_arrives(
    pair: tuple[str, Any, DiffusionModel], tmp_path: Path
) -> None:
    kind, pipe, model = pair
    layer = "clip.transformer.resblocks.0.mlp.c_fc.weight"
    with torch.no_grad():
        model.parameters[layer].add_(1.0)
    to_diffusers(model, tmp_path / "pipe", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.bin"))
    again = type(pipe).from_pretrained(str(tmp_path / "out"), local_files_only=True)
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "SDXL" else [])):
        before = getattr(pipe, name).state_dict()
        for key, value in getattr(again, name).state_dict().items():
            edited = name == "text_encoder" and key.endswith("layers.0.mlp.fc1.weight")
            assert torch.equal(value, before[key] + 1.0 if edited else before[key]), (name, key)
    with pytest.raises(FileExistsError):
        to_diffusers(model, tmp_path / "pipe", tmp_path / "out")


def test_text_tower_names_map_exactly_both_ways(tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    own = CLIPTextModelWithProjection(hf_config(2)).state_dict()
    mapped = from_hf_text(own)
    assert mapped["transformer.resblocks.1.attn.in_proj_weight"].shape == (96, 32)
    back = to_hf_text({**mapped, "visual.proj": torch.zeros(1), "logit_scale": torch.zeros(())})
    assert set(back) == {name.removeprefix("text_model.") for name in own}
    assert all(torch.equal(back[name.removeprefix("text_model.")], value) for name, value in own.items())
    with pytest.raises(ModelError, match="no tensor of a CLIP text tower"):
        from_hf_text({"text_model.encoder.layers.0.surprise.weight": torch.zeros(1)})


def test_the_clip_that_a_tower_was_taken_from_completes_it(
    tmp_path: Path, make_model: Callable[..., ClipModel]
) -> None:
    # As in SD 2.1: the pipeline has fewer blocks than the CLIP; those of the CLIP become no candidates.
    from transformers import CLIPTextModel

    from unlearning.families.diffusion_text import TextTower

    pipe = pipeline(tmp_path, "SD")
    clip = make_model("vit")
    folder = tmp_path / "pipe" / "text_encoder"
    config = hf_config(1, hidden_act="gelu")
    first = {n: w for n, w in to_hf_text(clip.net.state_dict()).items() if "layers.1." not in n}
    text = CLIPTextModel(config)
    names = {name.removeprefix("text_model."): name for name in text.state_dict()}
    text.load_state_dict({names[n]: w for n, w in first.items() if n in names})
    text.save_pretrained(folder)
    model = from_diffusers(tmp_path / "pipe", [clip])
    assert model.clip is not None
    assert torch.equal(model.clip.encode_texts(["red"]), clip.encode_texts(["red"]))
    blocks = {c.name.split(".")[3] for c in model.candidates() if "resblocks" in c.name}
    assert blocks == {"0"}
    assert not isinstance(model.clip.net, TextTower)
    alone = from_diffusers(tmp_path / "pipe")
    told = [m.conditioning(m.tokenize(TEXTS)).states for m in (model, alone)]
    assert torch.equal(told[0], told[1])
    with torch.no_grad():
        clip.parameters["ln_final.weight"].add_(1.0)
    with pytest.raises(
        ModelError, match=r"ln_final\.weight of the pipeline's text tower is not that of the CLIP"
    ):
        from_diffusers(tmp_path / "pipe", [clip])
    assert pipe is not None


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("tokenizer/tokenizer_config.json", {"pad_token": "?"}, "pads with"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "relu"),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, "no CLIP text tower"),
    ],
)
def test_other_pipelines_are_refused(tmp_path: Path, file: str, change: dict[str, Any], message: str) -> None:
    pipeline(tmp_path, "SD")
    path = tmp_path / "pipe" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        from_diffusers(tmp_path / "pipe")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    pipeline(tmp_path, "SD")
    weights = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="unet holds no safetensors file"):
        from_diffusers(tmp_path / "pipe")
