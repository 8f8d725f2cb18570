"""A restoration network cut into stages."""

from copy import deepcopy

import pytest
import torch

from contracts.errors import ModelError
from tests.unlearning.restoration_tiny import ARCHITECTURES, images, tiny
from unlearning.inplace import edited


def assert_same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """But for the order of sums, which the micro-batch decides."""
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_edit_is_seen_from_the_stage_that_uses_it_and_from_no_later_one(architecture: str) -> None:
    model = tiny(architecture)
    net, pixels = model.staged(), model.preprocess(images(3, 9, 16))
    before, plain = model.activations(pixels), model.forward(pixels)
    edits = {net.stage_of(layer.name): layer for layer in model.candidates()}
    assert set(edits) == set(range(len(net.stages)))
    for stage, layer in edits.items():
        entering = net.run(before, 0, stage, micro_batch=2)
        after = net.run(entering, stage, stage + 1, micro_batch=2)
        draw = torch.Generator().manual_seed(stage)
        with edited(model.parameters, {layer.name: torch.randn(layer.shape, generator=draw)}):
            whole = model.forward(pixels)
            assert not torch.allclose(whole, plain, atol=1e-2, rtol=1e-2), layer.name
            assert_same(net.restored(entering, stage, micro_batch=2), whole)
            assert_same(net.restored(after, stage + 1, micro_batch=3), plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_belongs_to_one_stage(architecture: str) -> None:
    model = tiny(architecture)
    stages = [model.staged().stage_of(name) for name in model.parameters]
    assert set(stages) == set(range(len(model.staged().stages)))
    with pytest.raises(ModelError, match="logit_scale belongs to 0 stages of its network, expected 1"):
        model.staged().stage_of("logit_scale")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_images_can_be_taken_out_between_stages(architecture: str) -> None:
    model = tiny(architecture)
    net, pixels = model.staged(), model.preprocess(images(4))
    middle = len(net.stages) // 2
    entering = net.run(model.activations(pixels), 0, middle, micro_batch=4)
    assert entering.skips
    kept = torch.tensor([False, True, False, True])
    restored = net.restored(entering.take(kept), middle, micro_batch=4)
    torch.testing.assert_close(restored, model.forward(pixels[kept]))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_copied_model_runs_its_own_weights(architecture: str) -> None:
    model = tiny(architecture)
    copied = deepcopy(model)
    before = model.restore(images())
    copied.parameters["output.weight"].zero_()
    assert torch.equal(model.restore(images()), before)
    assert not torch.equal(copied.restore(images()), before)
