"""Stable Diffusion 1.5, 2.1 and XL at full size, without any weights: what is read, what the UNet takes."""

import pytest
import torch

from tests.unlearning.families.diffusion_published import PADDING, TEXT, UNET
from unlearning.families.diffusion_hf import reads_of, text_cfg_of
from unlearning.families.diffusion_text import Reads, TextTower, read_layers, token_states

# Blocks that are read, width, and weights that a method may edit.
EXPECTED = {
    "sd-1.5": [(12, 768, True, False)],
    "sd-2.1": [(23, 1024, True, False)],
    "sdxl": [(11, 768, False, False), (32, 1280, True, True)],
}
UNET_PARAMETERS = {"sd-1.5": 859_520_964, "sd-2.1": 865_910_724, "sdxl": 2_567_463_684}


def towers(name: str) -> list[tuple[TextTower, Reads]]:
    found = []
    for i, config in enumerate(TEXT[name]):
        cfg = text_cfg_of(config)
        reads = Reads(**reads_of(config["num_hidden_layers"], name == "sdxl", i == 1, PADDING[name][i]))
        with torch.device("meta"):
            found.append(
                (TextTower(config.get("projection_dim", 0), cfg["text_cfg"], cfg["quick_gelu"]), reads)
            )
    return found


@pytest.mark.parametrize("name", TEXT)
def test_candidates_of_the_published_towers(name: str) -> None:
    for (net, reads), (blocks, width, normed, pooled) in zip(towers(name), EXPECTED[name], strict=True):
        names = {c.name for c in read_layers(net, reads)}
        expected = {
            f"transformer.resblocks.{i}.{part}"
            for i in range(blocks)
            for part in (
                "ln_1.weight",
                "attn.in_proj_weight",
                "attn.out_proj.weight",
                "ln_2.weight",
                "mlp.c_fc.weight",
                "mlp.c_proj.weight",
            )
        }
        expected |= {"ln_final.weight"} if normed else set()
        expected |= {"text_projection"} if pooled else set()
        assert names == expected
        states, feature = token_states(net, torch.zeros(2, 77, dtype=torch.long), reads)
        assert states.shape == (2, 77, width)
        assert (None if feature is None else feature.shape) == ((2, 1280) if pooled else None)


@pytest.mark.parametrize(("name", "whole"), [("sd-1.5", 12), ("sd-2.1", 24)])
def test_the_conditioning_follows_every_candidate_at_full_size_and_nothing_else(
    name: str, whole: int
) -> None:
    """Inside its CLIP a tower goes on behind what is read: SD 2.1's by a block, both by the projection."""
    (config,), ((_, reads),) = TEXT[name], towers(name)
    cfg = text_cfg_of({**config, "num_hidden_layers": whole})
    with torch.device("meta"):
        net = TextTower(config["hidden_size"], cfg["text_cfg"], cfg["quick_gelu"])
    candidates = {c.name for c in read_layers(net, reads)}
    net = net.to_empty(device="cpu").requires_grad_(False)
    net.attn_mask = torch.full((77, 77), -torch.inf).triu(1)  # a buffer that no weights file holds
    draw = torch.Generator().manual_seed(0)
    for weight in net.parameters():
        weight.uniform_(-0.05, 0.05, generator=draw) if weight.ndim > 1 else weight.fill_(0.5)
    tokens = torch.randint(0, 49405, (1, 77), generator=draw)
    named = dict(net.named_parameters())
    used = [named[layer].requires_grad_() for layer in candidates]
    states, _ = token_states(net, tokens, reads)
    grads = torch.autograd.grad((states * torch.randn(states.shape, generator=draw)).sum(), used)
    assert all(bool(grad.any()) for grad in grads)
    assert len(candidates) == 6 * EXPECTED[name][0][0] + 1
    behind = {"text_projection", *(n for n in named if f".{reads.blocks}." in n)}
    assert len(behind) == 1 + 12 * (whole - reads.blocks)
    with torch.no_grad():
        for layer in behind:
            named[layer].add_(1.0)
        again, _ = token_states(net, tokens, reads)
    assert torch.equal(again, states)


@pytest.mark.parametrize("name", TEXT)
def test_the_unet_takes_what_the_towers_tell(name: str) -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET[name])
    assert sum(p.numel() for p in unet.parameters()) == UNET_PARAMETERS[name]
    assert unet.config["cross_attention_dim"] == sum(width for _, width, _, _ in EXPECTED[name])
    if name == "sdxl":
        times = 6 * unet.config["addition_time_embed_dim"]
        assert unet.config["projection_class_embeddings_input_dim"] == 1280 + times
