"""PromptIR- and AdaIR-shaped networks: published sizes, parts against their definitions, any image size."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import ModelError
from tests.unlearning.restoration_tiny import ARCHITECTURES, SIZES, images, tiny
from unlearning.families.adair import CrossAttention, FrequencyBlock, bands
from unlearning.families.promptir import Prompt
from unlearning.families.restoration import RestorationModel, build_network, configuration
from unlearning.families.restoration_blocks import channel_attention


def n_parameters(architecture: str, part: str = "") -> int:
    """Of the published size, among the names that begin with `part`; no memory is used for weights."""
    with torch.device("meta"):
        net = build_network(configuration(architecture, {}))
    return sum(p.numel() for name, p in net.named_parameters() if name.startswith(part))


def test_promptir_of_the_published_size_has_the_published_parameters_that_are_used() -> None:
    prompts = 64 * 64 + 128 * 128 + 320 * 256
    never_run = prompts + (48 + 64) * 48 + (96 + 128) * 96 + (192 + 256) * 192
    assert n_parameters("promptir") == 35_376_967
    assert n_parameters("promptir") + never_run == 35_592_263


def test_adair_of_the_published_size_has_the_published_parameters_that_are_run() -> None:
    widths = (96, 192, 384)
    never_run = sum(3 * 9 * width + (2 * 2 * 49 + 2) for width in widths)
    assert n_parameters("adair") == 28_766_086
    assert n_parameters("adair") + never_run == 28_784_824
    assert n_parameters("adair") - n_parameters("adair", "fre") == 26_126_644
    assert sum(n_parameters("adair", f"fre{i}.rate_conv") for i in (1, 2, 3)) == 24_360


def test_attention_is_between_the_channels_of_a_head() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 6, 4, 5)
    temperature = torch.tensor([0.5, 2.0]).view(2, 1, 1)
    expected = torch.zeros_like(value)
    for c in range(6):
        head = range(3) if c < 3 else range(3, 6)
        cosines = [functional.cosine_similarity(query[0, c].flatten(), key[0, d].flatten(), 0) for d in head]
        shares = (torch.stack(cosines) * temperature[c // 3, 0, 0]).softmax(0)
        expected[0, c] = sum(share * value[0, d] for share, d in zip(shares, head, strict=True))
    torch.testing.assert_close(channel_attention(query, key, value, temperature), expected)


def test_a_prompt_is_its_components_weighted_by_the_mean_of_the_features() -> None:
    torch.manual_seed(0)
    prompt, features = Prompt(components=3, channels=4, size=6, features=5), torch.randn(2, 5, 6, 6)
    shares = prompt.linear_layer(features.mean((2, 3))).softmax(1)
    for n in range(2):
        mixed = sum(shares[n, k] * prompt.prompt_param[0, k] for k in range(3))
        expected = functional.conv2d(mixed, prompt.conv3x3.weight, padding=1)
        torch.testing.assert_close(prompt(features)[n], expected)
    assert prompt(torch.randn(1, 5, 9, 13)).shape == (1, 4, 9, 13)


@pytest.mark.parametrize("shape", [(12, 16), (13, 15)])
def test_bands_are_a_rectangle_of_the_centred_spectrum_and_what_is_outside(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, (height, width) = torch.randn(2, 3, *shape), shape
    half_sides = torch.tensor([[2, 3], [0, 4]])
    for image, (h, w), low, high in zip(x, half_sides, *bands(x, half_sides), strict=True):
        spectrum = torch.fft.fft2(image).roll((height // 2, width // 2), (1, 2))
        mask = torch.zeros(shape)
        mask[height // 2 - h : height // 2 + h, width // 2 - w : width // 2 + w] = 1
        for got, part in ((low, mask), (high, 1 - mask)):
            expected = torch.fft.ifft2((spectrum * part).roll((-(height // 2), -(width // 2)), (1, 2))).abs()
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def frequency_block() -> FrequencyBlock:
    torch.manual_seed(0)
    block = FrequencyBlock(channels=16, heads=4).requires_grad_(False)
    block.para1.fill_(1.0)
    return block


def outputs(block: FrequencyBlock, side: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    image, features = torch.rand(1, 3, 32, 32, generator=draw), torch.randn(1, 16, side, side, generator=draw)
    restored: Tensor = block(image, features)
    return restored


@pytest.mark.parametrize(("side", "decides"), [(255, False), (256, True)])
def test_the_low_band_is_empty_under_256_positions(side: int, decides: bool) -> None:
    """A documented trait of the published network; whoever mends it changes what its weights do."""
    block = frequency_block()
    before = outputs(block, side)
    assert bool(block.half_sides(torch.rand(1, 16, side, side)).any()) is False  # a ratio below 1/2
    block.rate_conv[2].weight.copy_(block.rate_conv[2].weight + 50 * torch.sign(ratio_inputs(block, side)))
    assert torch.equal(outputs(block, side), before) is not decides


def ratio_inputs(block: FrequencyBlock, side: int) -> Tensor:
    """(1, hidden, 1, 1) what the last layer of the predictor of the ratio reads."""
    draw = torch.Generator().manual_seed(1)
    image = functional.interpolate(torch.rand(1, 3, 32, 32, generator=draw), (side, side), mode="bilinear")
    embedded = block.conv1(image).mean((2, 3), keepdim=True)
    hidden: Tensor = block.rate_conv[1](block.rate_conv[0](embedded))
    return hidden


def test_a_new_frequency_block_hands_the_features_on() -> None:
    block = frequency_block()
    block.para1.zero_()
    draw = torch.Generator().manual_seed(1)
    torch.rand(1, 3, 32, 32, generator=draw)
    assert torch.equal(outputs(block, 8), torch.randn(1, 16, 8, 8, generator=draw))


def test_queries_of_nothing_get_the_mean_of_all_values() -> None:
    """Why the attention on an empty low band has weights that decide nothing."""
    torch.manual_seed(0)
    attention = CrossAttention(8, heads=2).requires_grad_(False)
    answers = torch.randn(1, 8, 4, 4)
    values = attention.kv_dwconv(attention.kv(answers))[:, 8:]
    means = torch.cat([half.mean(1, keepdim=True).expand(1, 4, 4, 4) for half in values.chunk(2, 1)], 1)
    expected = attention.project_out(means)
    torch.testing.assert_close(attention(torch.zeros_like(answers), answers), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_of_any_size_are_reflected_to_whole_strides_and_cropped_back(architecture: str) -> None:
    model = tiny(architecture)
    for height, width in ((1, 1), (3, 17), (8, 16), (23, 9)):
        given = images(2, height, width)
        restored = model.restore(given)
        assert restored.shape == (2, 3, height, width)
        assert restored.dtype == torch.float32
        assert 0.0 <= restored.min() <= restored.max() <= 1.0
        more = [(0, 0), (0, -height % 8), (0, -width % 8), (0, 0)]
        whole = model.restore(np.pad(given, more, mode="reflect"))
        assert torch.equal(restored, whole[..., :height, :width])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prediction_is_added_to_the_input(architecture: str) -> None:
    model = tiny(architecture)
    pixels = model.preprocess(images())
    assert not torch.equal(model.forward(pixels), pixels)
    model.parameters["output.weight"].zero_()
    assert torch.equal(model.forward(pixels), pixels)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fewer_levels_have_a_smaller_stride(architecture: str) -> None:
    options = {**SIZES[architecture], "blocks": [1, 1, 2], "heads": [1, 2, 4]}
    for name in {"prompt_channels", "prompt_sizes"} & options.keys():
        options[name] = options[name][:2]
    model = RestorationModel.initial(architecture, options, seed=0)
    assert model.net.stride == 4
    assert model.restore(images(1, 9, 10)).shape == (1, 3, 9, 10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_the_input(architecture: str) -> None:
    """An adversarial example needs them, also where the image is padded."""
    pixels = tiny(architecture).preprocess(images(1, 9, 13)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(tiny(architecture).forward(pixels).square().sum(), pixels)
    assert bool((gradient != 0).all())


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("promptir", {"widht": 48}, "PromptIRConfig: unknown field 'widht'"),
        ("adair", {"prompt_heads": 4}, "AdaIRConfig: unknown field 'prompt_heads'"),
        ("adair", {"width": "48"}, "AdaIRConfig.width: expected int, got str"),
        ("adair", {"blocks": [4, 6, 6]}, r"blocks \[4, 6, 6\] and heads \[1, 2, 4, 8\] must name"),
        ("adair", {"blocks": [4, 0, 6, 8]}, "must be positive"),
        ("adair", {"ffn_expansion": float("nan")}, "must be positive"),
        ("adair", {"width": 49}, "width must be even, got 49"),
        ("adair", {"heads": [1, 2, 5, 8]}, "192 channels cannot be shared out to 5 attention heads"),
        ("adair", {"width": 4, "heads": [1, 1, 1, 1]}, "width must be at least 8, got 4"),
        ("adair", {"frequency_heads": 5}, "96 channels cannot be shared out to 5 attention heads"),
        ("promptir", {"prompt_heads": 3}, "160 channels cannot be shared out to 3 attention heads"),
        ("promptir", {"prompt_sizes": [16, 32]}, "4 levels need 3 prompt_channels and prompt_sizes"),
        ("promptir", {"prompt_components": 0}, "must be positive"),
        ("restormer", {}, "unknown restoration architecture 'restormer'; known are promptir, adair"),
        (None, {}, "unknown restoration architecture None"),
    ],
)
def test_sizes_that_make_no_network_are_refused(architecture: Any, options: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        configuration(architecture, options)
