"""The restoration adapter: model folders, images, candidate layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from contracts.canonical import file_sha256
from contracts.errors import InputError, ModelError
from tests.unlearning.restoration_tiny import ARCHITECTURES, SIZES, images, tiny
from unlearning.families.restoration import RestorationModel
from unlearning.inplace import edited

# In images this small AdaIR's low band is empty; see `unlearning.families.adair`.
IDLE_IN_ADAIR = [
    f"fre{block}.{name}"
    for block in (1, 2, 3)
    for name in (
        "rate_conv.0.weight",
        "rate_conv.2.weight",
        "channel_cross_h.temperature",
        "channel_cross_h.q.weight",
        "channel_cross_h.q_dwconv.weight",
    )
]
IDLE = {"promptir": [], "adair": IDLE_IN_ADAIR}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saving_and_loading_is_bit_equal(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    digests = model.save(tmp_path / "first")
    again = RestorationModel.load(tmp_path / "first")
    assert again.save(tmp_path / "second") == digests
    assert digests == {p.name: file_sha256(p) for p in (tmp_path / "first").iterdir()}
    assert set(digests) == {"weights.safetensors", "config.json"}
    assert again.parameters.keys() == model.parameters.keys()
    assert all(torch.equal(again.parameters[name], p) for name, p in model.parameters.items())
    assert torch.equal(again.restore(images()), model.restore(images()))
    assert not again.net.training
    assert not any(p.requires_grad for p in again.net.parameters())


def test_half_precision_loads_as_fp32(tmp_path: Path) -> None:
    model = tiny("promptir")
    model.save(tmp_path, torch.float16)
    loaded = RestorationModel.load(tmp_path)
    assert all(torch.equal(loaded.parameters[n], p.half().float()) for n, p in model.parameters.items())


def test_a_model_does_not_share_memory_with_the_weights_it_is_made_of() -> None:
    model = tiny("promptir")
    weights = model.net.state_dict()
    RestorationModel(model.config, weights).parameters["output.weight"].zero_()
    assert bool(weights["output.weight"].any())


def test_initial_weights_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first, same, other = (
        RestorationModel.initial("adair", SIZES["adair"], seed).parameters["output.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def rewrite_config(**changes: Any) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return rewrite


def rewrite_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")

    return rewrite


def truncate(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing or is not JSON"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is missing or is not JSON"),
        (lambda f: (f / "weights.safetensors").unlink(), "weights.safetensors is missing or is not"),
        (truncate, "weights.safetensors is missing or is not a complete safetensors file"),
        (rewrite_config(schema=2), "config.json does not follow schema 1"),
        (rewrite_config(family="clip"), "the model is of family 'clip', expected 'restoration'"),
        (rewrite_config(architecture="airnet"), "unknown restoration architecture 'airnet'"),
        (rewrite_config(net=None), "the model configuration has no object 'net'"),
        (rewrite_config(net={"depth": 4}), "PromptIRConfig: unknown field 'depth'"),
        (rewrite_weights(lambda w: w.pop("output.weight")), "the weights lack output.weight"),
        (rewrite_weights(lambda w: w.update(extra=torch.ones(1))), "the weights hold extra, which the"),
        (
            rewrite_weights(lambda w: w.update({"output.weight": torch.ones(3, 8, 3, 3)})),
            r"output.weight is torch.float32 \(3, 8, 3, 3\), expected torch.float32 \(3, 16, 3, 3\)",
        ),
        (
            rewrite_weights(lambda w: w["output.weight"].view(-1)[5:6].fill_(float("inf"))),
            "output.weight holds values that are not finite",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    tiny("promptir").save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        RestorationModel.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_restoring_does_not_depend_on_the_micro_batch(architecture: str) -> None:
    model, given = tiny(architecture), images(5)
    restored = model.restore(given, micro_batch=2)
    torch.testing.assert_close(restored, model.restore(given))
    alone = model.forward(model.preprocess(given[3:4])).clamp(0, 1)
    torch.testing.assert_close(restored[3:4], alone)
    assert not restored.requires_grad


@pytest.mark.parametrize(
    "given", [np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 8, 8, 3))]
)
def test_images_of_another_shape_or_type_are_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"images must be uint8 \(N, H, W, 3\), got"):
        tiny("promptir").restore(given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_candidates_are_all_weights_but_biases_and_what_decides_nothing(architecture: str) -> None:
    model = tiny(architecture)
    wanted = {n for n in model.parameters if "bias" not in n} - set(IDLE[architecture])
    found = model.candidates()
    assert {layer.name for layer in found} == wanted
    for layer in found:
        parameter = model.parameters[layer.name]
        assert (layer.shape, layer.n_params) == (tuple(parameter.shape), parameter.numel())
    assert not any(p.requires_grad for p in model.net.parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_candidate_changes_the_output_and_an_idle_weight_does_not(architecture: str) -> None:
    model = tiny(architecture)
    given, draw = images(1, 8, 16), torch.Generator().manual_seed(1)
    before = model.restore(given)
    for name in [*(layer.name for layer in model.candidates()), *IDLE[architecture]]:
        noise = torch.randn(model.parameters[name].shape, generator=draw)
        with edited(model.parameters, {name: noise}):
            unchanged = torch.equal(model.restore(given), before)
        assert unchanged is (name in IDLE[architecture]), name


def test_frequency_blocks_that_are_switched_off_are_no_candidates() -> None:
    """A new AdaIR: `para1` is zero, so an edit behind it would be none."""
    model = RestorationModel.initial("adair", SIZES["adair"], seed=0)
    found = {layer.name for layer in model.candidates() if layer.name.startswith("fre")}
    assert found == {f"fre{block}.{name}" for block in (1, 2, 3) for name in ("para1", "para2")}
