"""Forget and retain gradients: exact, whatever the micro-batch, and never accumulated."""

from pathlib import Path

import pytest
import torch

from contracts.errors import InputError, ModelError
from unlearning.families.clip import ClipModel
from unlearning.gradients import (
    Gradients,
    forget_gradient,
    load_gradients,
    retain_gradient,
    save_gradients,
)
from unlearning.objectives import forget_loss, retain_loss

RETAIN_BATCH = 15


@pytest.fixture
def layers(model: ClipModel) -> list[str]:
    return [c.name for c in model.candidates()]


def forget(model: ClipModel, task, layers: list[str], micro_batch: int) -> Gradients:
    inputs = task.inputs(2)
    return forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, micro_batch)


def retain(model: ClipModel, task, layers: list[str], micro_batch: int, seed: int = 0) -> Gradients:
    inputs = task.inputs(2)
    return retain_gradient(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=RETAIN_BATCH,
        micro_batch=micro_batch,
        seed=seed,
    )


def assert_same(one: Gradients, other: Gradients) -> None:
    assert list(one) == list(other)
    # fp32 sums: a layer whose terms cancel keeps the rounding error of the largest ones.
    largest = max(float(grad.abs().max()) for grad in one.values())
    for layer, grad in one.items():
        atol = 1e-4 * float(grad.abs().max()) + 1e-6 * largest
        torch.testing.assert_close(grad, other[layer], atol=atol, rtol=1e-4, msg=layer)


@pytest.mark.parametrize("micro_batch", [1, 7])
def test_gradients_do_not_depend_on_the_micro_batch(model: ClipModel, task, layers, micro_batch: int) -> None:
    # Invariant 3.  Catches a contrastive loss over micro-batches, and a mean of unequal means.
    assert_same(forget(model, task, layers, micro_batch), forget(model, task, layers, 1000))
    assert_same(retain(model, task, layers, micro_batch), retain(model, task, layers, 1000))


def test_gradients_are_those_of_plain_backward(model: ClipModel, task, layers) -> None:
    inputs = task.inputs(2)
    streamed = forget(model, task, layers, 4), retain(model, task, layers, 4)

    weights = [model.parameters[layer].requires_grad_() for layer in layers]
    image = model.image_features(model.preprocess(inputs.forget_images))
    loss = forget_loss(image, model.text_features(model.tokenize(inputs.forget_captions)))
    assert_same(streamed[0], dict(zip(layers, torch.autograd.grad(loss, weights), strict=True)))

    image = model.image_features(model.preprocess(inputs.retain_images))
    text = model.text_features(model.tokenize(inputs.retain_captions))
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    scale = model.net.logit_scale.exp()
    losses = [retain_loss(image[rows], text[rows], scale) for rows in order.split(RETAIN_BATCH)]
    assert len(losses) > 1
    assert len(order) % RETAIN_BATCH, "the last batch should be a smaller one, of equal weight"
    mean = torch.stack(losses).mean()
    assert_same(streamed[1], dict(zip(layers, torch.autograd.grad(mean, weights), strict=True)))


def test_the_forget_gradient_is_the_slope_of_the_forget_loss(model: ClipModel, task, layers) -> None:
    inputs = task.inputs(2)
    pixels, tokens = model.preprocess(inputs.forget_images), model.tokenize(inputs.forget_captions)
    gradients = forget(model, task, layers, 7)
    model.net.double()
    for layer in ("text_projection", "visual.conv1.weight", "transformer.resblocks.0.mlp.c_fc.weight"):
        flat, grad = model.parameters[layer].data.view(-1), gradients[layer].view(-1)
        for entry in grad.abs().topk(2).indices.tolist():
            losses = []
            for nudge in (1e-5, -2e-5):
                flat[entry] += nudge
                with torch.no_grad():
                    losses.append(
                        forget_loss(model.image_features(pixels.double()), model.text_features(tokens))
                    )
            flat[entry] += 1e-5
            assert float(losses[0] - losses[1]) / 2e-5 == pytest.approx(float(grad[entry]), rel=2e-3)


def test_a_second_call_gives_the_same_numbers(model: ClipModel, task, layers) -> None:
    # Bug B1 of the reference scripts: without zeroing, gradients of one call leaked into the next.
    first = forget(model, task, layers, 16)
    retain(model, task, layers, 16)
    second = forget(model, task, layers, 16)
    assert all(torch.equal(first[layer], second[layer]) for layer in layers)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters.values())


def test_flags_are_restored_after_an_exception(model: ClipModel, task, layers, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(model, "text_features", broken)
    with pytest.raises(RuntimeError):
        forget(model, task, layers, 16)
    assert not any(p.requires_grad for p in model.parameters.values())


def test_one_towers_layers_give_the_same_numbers_alone(model: ClipModel, task, layers) -> None:
    # The other tower's second pass is skipped; its features still count in the loss.
    for vision in (True, False):
        some = [layer for layer in layers if layer.startswith("visual") == vision]
        together = retain(model, task, layers, 4)
        assert_same(retain(model, task, some, 4), {layer: together[layer] for layer in some})


def test_the_seed_decides_which_items_are_each_others_negatives(model: ClipModel, task, layers) -> None:
    one, other = retain(model, task, layers, 16, seed=0), retain(model, task, layers, 16, seed=1)
    assert not torch.allclose(one["text_projection"], other["text_projection"], rtol=1e-3)


def test_bad_calls_are_refused(model: ClipModel, task, layers) -> None:
    inputs = task.inputs(2)
    images, captions = inputs.forget_images, inputs.forget_captions
    with pytest.raises(InputError, match="6 images and 5 captions"):
        forget_gradient(model, images, captions[:5], layers, 16)
    with pytest.raises(InputError, match="0 images"):
        forget_gradient(model, images[:0], [], layers, 16)
    with pytest.raises(InputError, match="at least 2"):
        retain_gradient(model, images[:1], captions[:1], layers, retain_batch=4, micro_batch=4, seed=0)
    with pytest.raises(ModelError, match=r"'visual\.nothing'"):
        forget_gradient(model, images, captions, ["visual.nothing"], 16)
    model.parameters["text_projection"].data.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"gradient of .* is not finite"):
        forget_gradient(model, images, captions, layers, 16)


def test_saved_gradients_come_back_bit_equal_and_in_order(tmp_path: Path) -> None:
    saved = {
        "c-2": {"b.weight": torch.randn(3, 2), "a.weight": torch.randn(4)},
        "c-1": {"a.weight": torch.randn(4, 2).T},
    }
    save_gradients(saved, tmp_path / "gradients.safetensors")
    loaded = load_gradients(tmp_path / "gradients.safetensors")
    assert [(c, layer) for c in loaded for layer in loaded[c]] == [
        (c, layer) for c in saved for layer in saved[c]
    ]
    assert all(torch.equal(loaded[c][layer], saved[c][layer]) for c in saved for layer in saved[c])
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        load_gradients(tmp_path / "gone.safetensors")
