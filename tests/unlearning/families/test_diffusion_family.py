"""Diffusion models as files and as functions: exact round trips, honest candidates, pictures by seed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.errors import InputError, ModelError
from tests.unlearning.families.conftest import diffusion
from unlearning.drawing import draw
from unlearning.families.clip import EXCLUDED, ClipModel, tower_of
from unlearning.families.diffusion import CROSS_ATTENTION, DiffusionModel

TEXTS = ["a red square", "", "a drawing of a blue cross."]
Make = Callable[..., ClipModel]


def reads(blocks: int, normed: bool = True, pooled: bool = False, padding: int = 0) -> dict[str, Any]:
    return {"blocks": blocks, "normed": normed, "pooled": pooled, "padding": padding}


# How the published pipelines read towers of two blocks each: the last state, an earlier one, SDXL's two.
READS = {
    "SD 1.5": [reads(2, padding=813)],
    "SD 2.1": [reads(1)],
    "SDXL": [reads(1, normed=False, padding=813), reads(1, normed=False, pooled=True)],
}


def shrunken(make_model: Make, kind: str) -> DiffusionModel:
    changes: dict[str, Any] = {}
    if kind == "SDXL":
        changes["unet"] = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 24 + 6 * 8,
        }
        changes["sampling"] = {"size": 16, "steps": 3, "guidance": 2.0, "unconditional": "zeros"}
    clips = [make_model("vit", seed=i) for i in range(len(READS[kind]))]
    return diffusion(*clips, reads=READS[kind], **changes)


def test_a_saved_model_comes_back_bit_for_bit_and_draws_the_same(
    whole: DiffusionModel, tmp_path: Path
) -> None:
    told = whole.save(tmp_path)
    loaded = DiffusionModel.load(tmp_path)
    assert set(told) == {path.name for path in tmp_path.iterdir()}
    assert loaded.config == whole.config
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, loaded.net.state_dict()[name]), name
    assert np.array_equal(draw(whole, TEXTS, [1, 2, 3]), draw(loaded, TEXTS, [1, 2, 3]))


def test_half_precision_halves_the_file_and_is_read_back_as_rounded(
    whole: DiffusionModel, tmp_path: Path
) -> None:
    whole.save(tmp_path / "fp32")
    whole.save(tmp_path / "fp16", torch.float16)
    sizes = [(tmp_path / kind / "weights.safetensors").stat().st_size for kind in ("fp16", "fp32")]
    assert sizes[0] < 0.6 * sizes[1]
    weights = DiffusionModel.load(tmp_path / "fp16").parameters
    assert all(torch.equal(w, whole.parameters[n].half().float()) for n, w in weights.items())


@pytest.mark.parametrize(
    ("change", "file", "message"),
    [
        (lambda c: c.update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["clips"][0].update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["clips"][0]["reads"].update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["unet"].update(surprise=1), "config.json", "unet: unknown field 'surprise'"),
        (lambda c: c["codec"].update(surprise=1), "config.json", "codec"),
        (lambda c: c["scheduler"].update(surprise=1), "config.json", "scheduler: unknown field"),
        (lambda c: c["scheduler"].update(prediction_type="sample"), "config.json", "'sample'"),
        (lambda c: c["sampling"].update(surprise=1), "config.json", "unknown field 'surprise'"),
        (lambda c: c["sampling"].update(steps=0), "config.json", "steps"),
        (lambda c: c["clips"][0]["reads"].update(blocks=3), "config.json", "2 blocks"),
        (lambda c: c["clips"][0]["reads"].update(padding=814), "config.json", "padding 814"),
        (lambda c: c.update(clips=[]), "config.json", "one or two text towers"),
        (lambda c: c.update(family="clip"), "config.json", "family 'clip', expected 'diffusion'"),
        (lambda w: w.pop("clip.ln_final.weight"), "weights.safetensors", "lack ln_final.weight"),
        (lambda w: w.pop("unet.conv_in.weight"), "weights.safetensors", "lack unet.conv_in.weight"),
        (lambda w: w.update({"vae.extra": torch.zeros(1)}), "weights.safetensors", "hold vae.extra"),
        (lambda w: w["unet.conv_in.bias"].fill_(torch.nan), "weights.safetensors", "conv_in.bias holds"),
    ],
)
def test_what_is_not_a_sound_diffusion_model_is_refused_by_name(
    whole: DiffusionModel, tmp_path: Path, change: Callable[[Any], object], file: str, message: str
) -> None:
    whole.save(tmp_path)
    if file == "config.json":
        config = json.loads((tmp_path / file).read_text())
        change(config)
        (tmp_path / file).write_text(json.dumps(config))
    else:
        weights = load_file(tmp_path / file)
        change(weights)
        save_file(weights, tmp_path / file)
    with pytest.raises(ModelError, match=message):
        DiffusionModel.load(tmp_path)


def test_a_diffusion_model_is_no_clip_model(whole: DiffusionModel, tmp_path: Path) -> None:
    whole.save(tmp_path)
    with pytest.raises(ModelError, match="family 'diffusion', expected 'clip'"):
        ClipModel.load(tmp_path)


@pytest.mark.parametrize("kind", READS)
def test_candidates_are_the_weights_that_the_unet_is_told_of(make_model: Make, kind: str) -> None:
    # Catches a candidate behind the state that is read: editing it would change no picture.
    model = shrunken(make_model, kind)
    names = {c.name for c in model.candidates() if c.tower == "text"}
    tokens = model.tokenize(TEXTS)
    with torch.no_grad():
        before = model.conditioning(tokens)
        for name, weight in model.parameters.items():
            inner = name.partition(".")[2]
            excluded = any(word in inner for word in EXCLUDED)
            if name.startswith("unet.") or tower_of(inner) != "text" or excluded:
                assert name not in names
                continue
            kept = weight.clone()
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
            after = model.conditioning(tokens)
            weight.copy_(kept)
            changed = not torch.equal(before.states, after.states)
            if before.pooled is not None:
                changed |= not torch.equal(before.pooled, after.pooled)
            assert changed == (name in names), name
    for encoder, prefix in zip(model.encoders, ("clip", "clip2"), strict=False):
        assert encoder.clip is not None
        own = {c.name for c in encoder.clip.candidates()}
        assert {f"{prefix}.{name}" for name in own} == {n for n in names if n.startswith(f"{prefix}.")}


def test_which_weights_are_behind_what_is_read(make_model: Make) -> None:
    found = {kind: {c.name for c in shrunken(make_model, kind).candidates()} for kind in READS}
    assert "clip.text_projection" not in set.union(*found.values())
    for kind, last_block, last_norm in (
        ("SD 1.5", True, True),
        ("SD 2.1", False, True),
        ("SDXL", False, False),
    ):
        assert ("clip.transformer.resblocks.1.mlp.c_fc.weight" in found[kind]) == last_block
        assert ("clip.ln_final.weight" in found[kind]) == last_norm
    # The pooled feature of SDXL's second tower passes through all of it.
    assert {"clip2.text_projection", "clip2.ln_final.weight"} <= found["SDXL"]


def test_of_a_unet_the_matrices_through_which_texts_enter_are_named(whole: DiffusionModel) -> None:
    unet = [c for c in whole.candidates() if c.tower == "unet"]
    assert unet
    assert all(c.name.startswith("unet.") and c.name.endswith(CROSS_ATTENTION) for c in unet)
    assert {c.tower for c in whole.candidates()} == {"text", "unet"}


@pytest.mark.parametrize("kind", READS)
def test_the_unets_prediction_follows_every_candidate(make_model: Make, kind: str) -> None:
    model = shrunken(make_model, kind)
    latents = torch.randn(1, 48, 4, 4, generator=torch.Generator().manual_seed(0))
    names = [c.name for c in model.candidates()]
    weights = [model.parameters[name].requires_grad_() for name in names]
    told = model.conditioning(model.tokenize(TEXTS[:1]))
    said = model.predict(latents, torch.tensor([500]), told)
    for name, grad in zip(names, torch.autograd.grad(said.square().sum(), weights), strict=True):
        assert bool(grad.any()), name


def test_padding_is_what_the_configuration_says_and_the_unet_reads_it(make_model: Make) -> None:
    ends, zeros = (diffusion(make_model("vit"), reads=[reads(2, padding=p)]) for p in (813, 0))
    tokens = [model.tokenize(["red"])[0] for model in (ends, zeros)]
    length = int(tokens[1].argmax()) + 1
    assert torch.equal(tokens[0][:, :length], tokens[1][:, :length])
    assert set(tokens[0][0, length:].tolist()) == {813}
    assert set(tokens[1][0, length:].tolist()) == {0}
    states = [m.conditioning([t]).states for m, t in zip((ends, zeros), tokens, strict=True)]
    assert torch.equal(states[0][:, :length], states[1][:, :length])
    assert not torch.equal(states[0], states[1])


def test_a_text_tower_alone_tells_the_unet_the_same(make_model: Make, tmp_path: Path) -> None:
    clip = make_model("vit")
    whole, alone = diffusion(clip), diffusion(clip, whole=False)
    assert whole.clip is not None
    assert alone.clip is None
    assert [c.name for c in alone.candidates()] == [c.name for c in whole.candidates()]
    told = [model.conditioning(model.tokenize(TEXTS)).states for model in (whole, alone)]
    assert torch.equal(told[0], told[1])
    alone.save(tmp_path)
    again = DiffusionModel.load(tmp_path)
    assert torch.equal(again.conditioning(again.tokenize(TEXTS)).states, told[1])


def test_pictures_depend_on_prompt_and_seed_alone(whole: DiffusionModel) -> None:
    done: list[tuple[int, int]] = []
    pictures = draw(
        whole, [*TEXTS, TEXTS[0]], [1, 1, 1, 2], micro_batch=3, progress=lambda a, b: done.append((a, b))
    )
    assert pictures.shape == (4, 16, 16, 3)
    assert pictures.dtype == np.uint8
    assert done == [(3, 4), (4, 4)]
    again = draw(whole, [*TEXTS, TEXTS[0]], [1, 1, 1, 2], micro_batch=3)
    assert np.array_equal(pictures, again)
    # Alone or among others, up to the rounding of one grey level.
    alone = np.concatenate(
        [draw(whole, [t], [s]) for t, s in zip([*TEXTS, TEXTS[0]], [1, 1, 1, 2], strict=True)]
    )
    assert np.abs(pictures.astype(int) - alone).max() <= 1
    assert not np.array_equal(pictures[0], pictures[3])
    assert not np.array_equal(pictures[0], pictures[2])


def test_guidance_of_one_is_the_plain_prediction_and_steps_can_be_asked_for(whole: DiffusionModel) -> None:
    plain, guided = (draw(whole, TEXTS[:1], [4], guidance=g) for g in (1.0, 4.0))
    assert not np.array_equal(plain, guided)
    assert not np.array_equal(draw(whole, TEXTS[:1], [4], steps=1), draw(whole, TEXTS[:1], [4], steps=5))


@pytest.mark.parametrize(
    ("prompts", "seeds", "options"),
    [([], [], {}), (["a"], [1, 2], {}), (["a"], [1], {"steps": 0}), (["a"], [1], {"guidance": -1.0})],
)
def test_what_cannot_be_drawn_is_refused(
    whole: DiffusionModel, prompts: list[str], seeds: list[int], options: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        draw(whole, prompts, seeds, **options)


def test_pixels_come_back_from_latents_exactly(whole: DiffusionModel) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(whole.decode(whole.encode(images)), images)
    with pytest.raises(InputError, match="uint8"):
        whole.encode(images.astype(np.float32))
