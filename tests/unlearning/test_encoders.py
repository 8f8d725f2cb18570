"""Half precision and activation checkpointing of the encoders: what they may change, and what not."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from contracts.errors import InputError, ModelError
from unlearning.checkpointing import _Saved, checkpointed
from unlearning.encoders import FULL_PRECISION, Compute, Encoders, encoders
from unlearning.families.clip import ClipModel
from unlearning.gradients import Gradients, forget_gradient, retain_gradient
from unlearning.moments_graph import Use, uses

BF16, FP16 = Compute(torch.bfloat16), Compute(torch.float16)


@pytest.fixture(params=["vit", "rn"])
def model(request: pytest.FixtureRequest, make_model) -> ClipModel:
    """Random weights: a trained model's retain gradient is a small difference of large terms."""
    return make_model(request.param)


@pytest.fixture
def layers(model: ClipModel) -> list[str]:
    return [c.name for c in model.candidates()]


def forget(model: ClipModel, task, layers: list[str], compute: Compute) -> Gradients:
    inputs = task.inputs(2)
    return forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, 4, compute)


def retain(model: ClipModel, task, layers: list[str], compute: Compute) -> Gradients:
    inputs = task.inputs(2)
    return retain_gradient(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=15,
        micro_batch=4,
        seed=0,
        compute=compute,
    )


def cosines(one: Gradients, other: Gradients) -> dict[str, float]:
    return {
        layer: float(torch.cosine_similarity(grad.flatten(), other[layer].flatten(), dim=0))
        for layer, grad in one.items()
    }


def distance(one: Gradients, other: Gradients) -> float:
    """Relative to the length of all gradients together."""
    flat, its = (torch.cat([grad.flatten() for grad in of.values()]) for of in (one, other))
    return float((flat - its).norm() / flat.norm())


@pytest.mark.parametrize("gradient", [forget, retain])
def test_bfloat16_keeps_the_direction_of_every_layers_gradient(
    model: ClipModel, task, layers, gradient
) -> None:
    exact, rounded = gradient(model, task, layers, FULL_PRECISION), gradient(model, task, layers, BF16)
    assert all(grad.dtype == torch.float32 for grad in rounded.values())
    # 8 bits of mantissa: 0.4 % per product, a few products deep.
    assert min(cosines(exact, rounded).values()) > 0.99
    assert 1e-4 < distance(exact, rounded) < 0.1, "above: too far off; below: autocast is not on"


def test_features_leave_autocast_in_fp32_and_of_unit_length(model: ClipModel, task) -> None:
    images = torch.as_tensor(task.inputs(2).forget_images)
    features = Encoders(model, torch.bfloat16).image(images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(images)), atol=1e-6, rtol=0)


def test_float16_needs_its_loss_scale(model: ClipModel, task, layers) -> None:
    exact = retain(model, task, layers, FULL_PRECISION)
    scaled = distance(exact, retain(model, task, layers, FP16))
    assert scaled < 0.02
    # Gradients of the order of the smallest fp16 number come out coarse or as zero ...
    assert distance(exact, retain(model, task, layers, Compute(torch.float16, loss_scale=2.0**-20))) > 0.05
    # ... and those beyond the largest one as infinity.
    with pytest.raises(ModelError, match=r"gradient of \S+ is not finite: float16 with loss scale 1\.67"):
        retain(model, task, layers, Compute(torch.float16, loss_scale=2.0**24))


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_checkpointing_changes_no_bit(model: ClipModel, task, layers, autocast) -> None:
    for gradient in (forget, retain):
        kept = gradient(model, task, layers, Compute(autocast))
        computed_again = gradient(model, task, layers, Compute(autocast, checkpointing=True))
        assert all(torch.equal(kept[layer], computed_again[layer]) for layer in layers)


def kept_bytes(model: ClipModel, task, layers: list[str], compute: Compute) -> int:
    """What a forward pass of both towers keeps for the backward pass, weights aside."""
    inputs = task.inputs(2)
    images, tokens = torch.as_tensor(inputs.forget_images), model.tokenize(inputs.forget_captions)
    weights = {p.data_ptr() for p in model.net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        keep(args[0])

    # A checkpoint holds its block's input itself, out of sight of the hooks for saved tensors.
    blocks = [m for m in model.net.modules() if type(m).__name__ in ("ResidualAttentionBlock", "Bottleneck")]
    handles = [block.register_forward_pre_hook(keep_input) for block in blocks]
    with encoders(model, layers, compute) as encode:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            alive = encode.image(images), encode.text(tokens)
        assert all(features.requires_grad for features in alive)
    for handle in handles:
        handle.remove()
    return sum(kept.values())


def test_checkpointing_keeps_less(model: ClipModel, task, layers) -> None:
    whole = kept_bytes(model, task, layers, FULL_PRECISION)
    assert kept_bytes(model, task, layers, Compute(checkpointing=True)) < 0.5 * whole


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_what_a_checkpointed_operation_saved_can_be_looked_at_before_it_is_differentiated(
    model: ClipModel, task, autocast
) -> None:
    # torch's own checkpoint refuses the second look.
    name = "transformer.resblocks.0.mlp.c_fc.weight"
    seen: dict[bool, Tensor] = {}
    for checkpointing in (False, True):
        with encoders(model, [name], Compute(autocast, checkpointing)) as encode:
            features = encode.text(model.tokenize(task.inputs(2).forget_captions))
        (use,) = uses(features, {name: model.parameters[name]})

        def look(gradients: object, use: Use = use, key: bool = checkpointing) -> None:
            everything = torch.ones(6 * 12, dtype=torch.bool)
            seen[key] = next(use.inputs(everything)).clone()

        use.node.register_prehook(look)
        model.parameters[name].requires_grad_(True)
        torch.autograd.grad(features.sum(), model.parameters[name])
        model.parameters[name].requires_grad_(False)
    assert torch.equal(seen[True], seen[False])
    assert seen[True].dtype == (autocast or torch.float32)


def test_a_checkpointed_block_runs_twice_and_its_tensors_go_with_its_backward(
    model: ClipModel, task, monkeypatch
) -> None:
    block, runs = model.net.transformer.resblocks[0], []
    run = type(block).forward
    monkeypatch.setattr(
        type(block), "forward", lambda self, *a, **o: (runs.append(self is block), run(self, *a, **o))[1]
    )
    made: list[weakref.ref] = []
    again = _Saved.tensor

    def tensor(saved: _Saved) -> Tensor:
        value = again(saved)
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(_Saved, "tensor", tensor)
    layers = ["transformer.resblocks.0.mlp.c_fc.weight"]
    with encoders(model, layers, Compute(checkpointing=True)) as encode:
        tokens = model.tokenize(task.inputs(2).forget_captions)
        with torch.no_grad():
            encode.text(tokens)
        assert sum(runs) == 1
        features = encode.text(tokens)
        torch.autograd.grad(features.sum(), model.parameters[layers[0]])
    assert sum(runs) == 3
    assert len(made) > 5
    own = {p.data_ptr() for p in model.net.parameters()}
    left = [ref() for ref in made if ref() is not None and ref().data_ptr() not in own]
    assert left == [], "a graph that was differentiated holds nothing, although its features are there"


def test_checkpointing_ends_with_its_block_also_after_an_exception(model: ClipModel) -> None:
    assert isinstance(model.net, nn.Module)

    def own_methods() -> list[str]:
        return [name for m in model.net.modules() for name in ("forward", "stem") if name in vars(m)]

    def broken() -> None:
        with checkpointed(model.net):
            assert len(own_methods()) >= 4, "every block of both towers"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert own_methods() == []


def test_a_loss_scale_follows_what_a_mean_was_divided_by() -> None:
    assert FP16.scale(1000) == 16 * 1024
    assert BF16.scale(1000) == FULL_PRECISION.scale(1000) == 1.0


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match=r"bfloat16 or float16, got torch\.float64"):
        Compute(torch.float64)
    for scale in (0.0, -2.0, 3.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=f"power of two, got {scale}"):
            Compute(torch.float16, loss_scale=scale)
