"""Forget and retain gradients: exact, whatever the micro-batch, and never accumulated."""

import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from contracts.errors import InputError, ModelError
from unlearning import distributed, methods
from unlearning.accumulation import GradientSum
from unlearning.contrastive import batches, surrogates
from unlearning.encoders import FULL_PRECISION, encoders
from unlearning.families.clip import ClipModel, tower_of
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


def test_a_leftover_item_joins_the_batch_before_it(model: ClipModel, task, layers) -> None:
    # By itself it has no negatives: a gradient of zero that would still count in the mean.
    inputs, n = task.inputs(2), RETAIN_BATCH + 1
    images, captions = inputs.retain_images[:n], inputs.retain_captions[:n]

    def gradient(retain_batch: int) -> Gradients:
        return retain_gradient(
            model, images, captions, layers, retain_batch=retain_batch, micro_batch=4, seed=0
        )

    assert_same(gradient(RETAIN_BATCH), gradient(n))
    assert not torch.allclose(gradient(n)["text_projection"], gradient(n - 2)["text_projection"], rtol=1e-2)


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (5, 4, [5]), (2, 4, [2]), (1, 4, [1]), (3, 2, [3])],
)
def test_batches_hold_every_item_once_and_none_is_of_one(n: int, size: int, sizes: list[int]) -> None:
    found = batches(torch.arange(n), size)
    assert [len(rows) for rows in found] == sizes
    assert torch.cat(found).tolist() == list(range(n))


def test_a_process_without_an_item_of_a_batch_adds_nothing(
    model: ClipModel, task, layers, monkeypatch
) -> None:
    # Two items over three processes, one after the other; what they gather is known before.
    inputs, rows = task.inputs(2), torch.tensor([3, 0])
    pixels, tokens = torch.as_tensor(inputs.retain_images), model.tokenize(inputs.retain_captions)
    arguments = (pixels[rows].numpy(), [inputs.retain_captions[i] for i in rows], layers)
    alone = retain_gradient(model, *arguments, retain_batch=2, micro_batch=4, seed=0)
    total, encoded = GradientSum(model, layers, FULL_PRECISION), []
    with encoders(model, layers, FULL_PRECISION) as run:
        encode = {"vision": lambda own: run.image(pixels[own]), "text": lambda own: run.text(tokens[own])}
        with torch.no_grad():
            gathered = [encode["vision"](rows), encode["text"](rows)]
        monkeypatch.setattr(distributed, "size", lambda: 3)
        for rank in range(3):
            waiting = [features.clone() for features in gathered]
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            monkeypatch.setattr(distributed, "gather_rows", lambda own, n, waiting=waiting: waiting.pop(0))
            loss = partial(retain_loss, logit_scale=model.logit_scale)
            scalars = surrogates(model, encode, rows, {"vision", "text"}, loss=loss, micro_batch=4)
            encoded.append([total.add(scalar) for scalar in scalars])
    monkeypatch.undo()
    assert [len(scalars) for scalars in encoded] == [0, 2, 2]
    assert_same(total.total(), alone)


def test_gradients_of_a_shared_weight_are_those_of_all_its_uses(model: ClipModel, task) -> None:
    first, second = model.net.transformer.resblocks
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    model.parameters = dict(model.net.named_parameters())
    layer, inputs = "transformer.resblocks.0.mlp.c_fc.weight", task.inputs(2)
    found = forget(model, task, [layer], 4)[layer]

    weight = model.parameters[layer].requires_grad_()
    image = model.image_features(model.preprocess(inputs.forget_images))
    loss = forget_loss(image, model.text_features(model.tokenize(inputs.forget_captions)))
    torch.testing.assert_close(found, torch.autograd.grad(loss, weight)[0], rtol=1e-4, atol=1e-6)


def test_no_second_set_of_gradients_is_there_beside_the_sum(model: ClipModel, layers) -> None:
    # Catches a backward pass that returns all gradients, to be added afterwards.
    total = GradientSum(model, layers, FULL_PRECISION)
    weights = [model.parameters[layer].requires_grad_() for layer in layers]
    alive: list[weakref.ref] = []
    most = 0

    class Passed(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.sum()

        @staticmethod
        def backward(ctx, gradient):
            nonlocal most
            most = max(most, 1 + sum(ref() is not None for ref in alive))
            made = torch.ones_like(weights[len(alive)])
            alive.append(weakref.ref(made))
            return made

    # autograd goes through the last use first.
    total.add(sum(Passed.apply(weight) for weight in reversed(weights)))
    assert len(alive) == len(layers) > 10
    assert most <= 2
    assert all(float(grad.min()) == float(grad.max()) == 1.0 for grad in total.total().values())


def test_a_models_own_gradients_are_left_alone_also_by_an_exception(
    model: ClipModel, task, layers, monkeypatch
) -> None:
    own = torch.full_like(model.parameters["text_projection"], 7.0)
    model.parameters["text_projection"].grad = own

    def broken(gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("in the middle of a backward pass")

    expected = forget(model, task, layers, 16)
    encode = model.image_features

    def image_features(pixels: torch.Tensor) -> torch.Tensor:
        features = encode(pixels)
        features.register_hook(broken)
        return features

    monkeypatch.setattr(model, "image_features", image_features)
    with pytest.raises(RuntimeError, match="in the middle"):
        forget(model, task, layers, 16)
    kept = {layer: p.grad for layer, p in model.parameters.items() if p.grad is not None}
    assert list(kept) == ["text_projection"]
    assert kept["text_projection"] is own
    assert bool((own == 7.0).all())
    monkeypatch.undo()
    again = forget(model, task, layers, 16)
    assert all(torch.equal(again[layer], expected[layer]) for layer in layers)


@pytest.mark.parametrize("gradient", [forget, retain])
def test_the_graphs_of_both_towers_are_never_there_together(
    model: ClipModel, task, layers, gradient, monkeypatch
) -> None:
    # Also where everything is one piece.  A graph is there until it was differentiated.
    open_graphs: list[str] = []
    most = 0

    def watched(tower: str, encode):
        def run(batch: torch.Tensor) -> torch.Tensor:
            nonlocal most
            features = encode(batch)
            if features.requires_grad:
                open_graphs.append(tower)
                most = max(most, len(open_graphs))
            return features

        return run

    monkeypatch.setattr(model, "image_features", watched("vision", model.image_features))
    monkeypatch.setattr(model, "text_features", watched("text", model.text_features))
    add = GradientSum.add

    def added(self: GradientSum, scalar: torch.Tensor) -> None:
        add(self, scalar)
        open_graphs.clear()

    monkeypatch.setattr(GradientSum, "add", added)
    for micro_batch in (4, 1000):
        gradient(model, task, layers, micro_batch)
    assert most == 1


@pytest.mark.parametrize("gradient", [forget, retain])
def test_one_edited_tower_is_encoded_once_where_everything_is_one_piece(
    model: ClipModel, task, gradient, monkeypatch
) -> None:
    calls = []
    for name in ("image_features", "text_features"):
        encode = getattr(model, name)
        monkeypatch.setattr(
            model, name, lambda batch, name=name, encode=encode: calls.append(name) or encode(batch)
        )
    gradient(model, task, ["text_projection"], 1000)
    assert calls.count("image_features") == calls.count("text_features")
    assert calls.count("text_features") == (1 if gradient is forget else 3)


def test_the_last_piece_of_one_tower_waits_with_its_graph_and_is_not_encoded_again(
    model: ClipModel, task, layers, monkeypatch
) -> None:
    with_graph: dict[str, list[int]] = {"image_features": [], "text_features": []}
    without: dict[str, list[int]] = {"image_features": [], "text_features": []}
    for name in with_graph:
        encode = getattr(model, name)

        def run(batch: torch.Tensor, name: str = name, encode=encode) -> torch.Tensor:
            (with_graph if torch.is_grad_enabled() else without)[name].append(len(batch))
            return encode(batch)

        monkeypatch.setattr(model, name, run)
    inputs = task.inputs(2)
    images, captions = inputs.retain_images[:11], inputs.retain_captions[:11]
    retain_gradient(model, images, captions, layers, retain_batch=11, micro_batch=4, seed=0)
    assert without == {"image_features": [4, 4], "text_features": [4, 4, 3]}
    assert {name: sorted(sizes) for name, sizes in with_graph.items()} == {
        "image_features": [3, 4, 4],
        "text_features": [3, 4, 4],
    }


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
    with pytest.raises(InputError, match="a contrastive batch needs at least 2 items, got 1"):
        retain_gradient(model, images, captions, layers, retain_batch=1, micro_batch=4, seed=0)
    with pytest.raises(InputError, match=r"uint8 \(N, H, W, 3\), got torch\.float32"):
        forget_gradient(model, images.astype("float32"), captions, layers, 16)
    with pytest.raises(InputError, match="no layer is named"):
        forget_gradient(model, images, captions, [], 16)
    with pytest.raises(InputError, match="no layer is named"):
        retain_gradient(model, images, captions, [], retain_batch=4, micro_batch=4, seed=0)
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
    save_file({"a/w": torch.zeros(2)}, tmp_path / "earlier.safetensors", {"order": '["a/w"]'})
    with pytest.raises(ModelError, match=r"earlier\.safetensors is missing or is not a complete"):
        load_gradients(tmp_path / "earlier.safetensors")


def test_a_concept_without_gradients_is_there_after_saving(model: ClipModel, task, tmp_path: Path) -> None:
    method, inputs = replace(task.method, name="slug"), task.inputs(2, 5)
    found = methods.profile(model, inputs, method)
    (first, _) = found.directions
    save_gradients({**found.directions, first: {}}, tmp_path / "gradients.safetensors")
    loaded = load_gradients(tmp_path / "gradients.safetensors")
    assert list(loaded) == list(found.directions)
    assert loaded[first] == {}
    # Catches the complaint that the profile is of other concepts.
    with pytest.raises(ModelError, match="a concept has no layer"):
        methods.edit(model, inputs, method, replace(found, directions=loaded))
    save_gradients({first: {}}, tmp_path / "none.safetensors")
    assert load_gradients(tmp_path / "none.safetensors") == {first: {}}


@pytest.mark.parametrize("edited", ["vision", "text"])
def test_a_tower_that_runs_without_a_graph_does_so_before_there_is_one(
    model: ClipModel, task, layers, monkeypatch, edited: str
) -> None:
    # Catches a forget pass that takes the room of one tower's graph and of the other one's run at once.
    had_graph = []
    for name in ("image_features", "text_features"):
        run = getattr(ClipModel, name)

        def kept(self, batch, run=run):
            features = run(self, batch)
            had_graph.append(features.requires_grad)
            return features

        monkeypatch.setattr(ClipModel, name, kept)
    forget(model, task, [layer for layer in layers if tower_of(layer) == edited], 1000)
    assert had_graph == [False, True]
