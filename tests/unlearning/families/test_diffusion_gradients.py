"""Gradients of the denoising loss: they forget when ascended, and do not depend on the micro-batch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from tests.unlearning.conftest import items
from tests.unlearning.families.conftest import diffusion
from unlearning.denoising import Draws, NoisedPictures, forget_gradient, neutral, retain_gradient
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import Conditioning, DiffusionModel
from unlearning.inplace import edited
from unlearning.moment_sums import MomentSums
from unlearning.moments_collector import Collector
from unlearning.moments_solve import Preconditioner

Make = Callable[..., ClipModel]
DRAWS = Draws(count=3, seed=4)
IMAGES = items(1, seed=3, labels=range(5))[0]
CAPTIONS = [f"a {name}" for name in ("red square", "red disc", "green cross", "blue square", "yellow disc")]
NEUTRAL = ["a drawing"] * 5


@pytest.fixture
def alone(make_model: Make) -> DiffusionModel:
    """A text tower without its CLIP: these gradients need none."""
    return diffusion(make_model("vit"), whole=False)


def layers_of(model: DiffusionModel) -> list[str]:
    return [c.name for c in model.candidates()]


@torch.no_grad()
def forget_loss(
    model: DiffusionModel, images: np.ndarray, goal: Conditioning | None, draws: Draws = DRAWS
) -> float:
    pictures = NoisedPictures(model, images, CAPTIONS[: len(images)], goal, draws)
    return float(pictures.part(torch.arange(len(images))).forget_loss())


def retain_and_sums(
    model: DiffusionModel, images: np.ndarray, captions: list[str], layers: list[str], micro_batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, MomentSums]]:
    matrices = {layer: model.parameters[layer] for layer in layers if model.parameters[layer].ndim > 1}
    collector = Collector(matrices, len(captions), None, with_outputs=False)
    told = {"draws": DRAWS, "micro_batch": micro_batch, "watch": collector.watch}
    return retain_gradient(model, images, captions, layers, **told), collector.sums()


@pytest.mark.parametrize("objective", ["neutral", "denoising"])
def test_a_small_step_along_the_gradient_ascends_the_forget_loss(
    alone: DiffusionModel, objective: str
) -> None:
    # Catches the sign trap: along the negative gradient the concept would be drawn better.
    goal = neutral(alone, NEUTRAL) if objective == "neutral" else None
    layers = [c.name for c in alone.candidates() if c.tower == "text"]
    grads = forget_gradient(alone, IMAGES, CAPTIONS, goal, layers, draws=DRAWS, micro_batch=5)

    def loss() -> float:
        return forget_loss(alone, IMAGES, goal)

    before = loss()
    for layer in layers:
        step = 0.01 * alone.parameters[layer].norm() / grads[layer].norm()
        with edited(alone.parameters, {layer: grads[layer] * step}):
            ascended = loss()
        with edited(alone.parameters, {layer: -grads[layer] * step}):
            descended = loss()
        assert descended < before < ascended, layer


def test_the_neutral_loss_has_its_maximum_where_the_caption_is_the_neutral_one(alone: DiffusionModel) -> None:
    goal = neutral(alone, CAPTIONS)
    layers = layers_of(alone)[:2]
    assert forget_loss(alone, IMAGES, goal) == pytest.approx(0, abs=1e-12)
    grads = forget_gradient(alone, IMAGES, CAPTIONS, goal, layers, draws=DRAWS, micro_batch=5)
    assert all(float(grad.abs().max()) < 1e-6 for grad in grads.values())
    other = neutral(alone, NEUTRAL)
    assert forget_loss(alone, IMAGES, other) < -1e-6


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_gradients_and_moments_do_not_depend_on_the_micro_batch(
    alone: DiffusionModel, micro_batch: int
) -> None:
    layers, goal = layers_of(alone), neutral(alone, NEUTRAL)
    found = []
    for size in (5, micro_batch):
        forget = forget_gradient(alone, IMAGES, CAPTIONS, goal, layers, draws=DRAWS, micro_batch=size)
        retain, sums = retain_and_sums(alone, IMAGES, CAPTIONS, layers, micro_batch=size)
        found.append((forget, retain, sums))
    (f1, r1, s1), (f2, r2, s2) = found
    for layer in layers:
        for one, other in ((f1[layer], f2[layer]), (r1[layer], r2[layer])):
            assert float((one - other).norm()) <= 1e-4 * float(one.norm()), layer
    assert set(s1) == set(s2) == {layer for layer in layers if alone.parameters[layer].ndim > 1}
    for layer, sums in s1.items():
        assert sums.rows == s2[layer].rows
        torch.testing.assert_close(sums.inputs, s2[layer].inputs, rtol=1e-4, atol=1e-4)


def test_gradients_are_autograds_and_leave_nothing_behind(alone: DiffusionModel) -> None:
    # Bug B1 of the published scripts: a second call must not contain the first one's gradient.
    layer = "clip.transformer.resblocks.0.mlp.c_fc.weight"
    one, other = (
        forget_gradient(alone, IMAGES, CAPTIONS, None, [layer], draws=DRAWS, micro_batch=2)[layer]
        for _ in range(2)
    )
    assert torch.equal(one, other)
    assert all(p.grad is None and not p.requires_grad for p in alone.parameters.values())
    eps = 2e-3
    direction = one / one.norm()
    losses = []
    for sign in (1, -1):
        with edited(alone.parameters, {layer: sign * eps * direction}):
            losses.append(forget_loss(alone, IMAGES, None))
    assert (losses[0] - losses[1]) / (2 * eps) == pytest.approx(float(one.norm()), rel=0.05)


def test_draws_depend_on_the_seed_and_on_the_place_in_the_set(alone: DiffusionModel) -> None:
    def loss(seed: int, images: np.ndarray) -> float:
        return forget_loss(alone, images, None, Draws(2, seed))

    assert loss(1, IMAGES) == loss(1, IMAGES)
    assert loss(1, IMAGES) != loss(2, IMAGES)
    # Of two equal pictures each has its own noise.
    twice = [loss(1, np.repeat(IMAGES[:1], n, axis=0)) for n in (1, 2)]
    assert twice[0] != twice[1]


def test_moments_turn_a_gradient_into_a_step_that_spares_retained_texts(alone: DiffusionModel) -> None:
    layer, goal = "clip.transformer.resblocks.1.mlp.c_proj.weight", neutral(alone, NEUTRAL[:1])
    _, sums = retain_and_sums(alone, IMAGES[1:], CAPTIONS[1:], [layer], micro_batch=4)
    grad = forget_gradient(alone, IMAGES[:1], CAPTIONS[:1], goal, [layer], draws=DRAWS, micro_batch=1)[layer]
    spared = Preconditioner(layer, sums[layer].mean(), 0.01, None).direction(grad)
    # At the same first-order gain the preconditioned step moves retained token states less.
    texts = alone.tokenize(CAPTIONS[1:])
    before, moved = alone.conditioning(texts).states.detach(), []
    for step in (grad, spared):
        with edited(alone.parameters, {layer: step * (1e-3 / float((step * grad).sum()))}), torch.no_grad():
            moved.append(float((alone.conditioning(texts).states - before).norm()))
    assert moved[1] < 0.9 * moved[0]


def test_what_makes_no_gradient_is_refused(alone: DiffusionModel) -> None:
    layers = layers_of(alone)[:1]
    with pytest.raises(InputError, match="alike"):
        # Bug B2: captions of the retain set are its own, never one name for all.
        retain_gradient(alone, IMAGES, ["a red square"] * 5, layers, draws=DRAWS, micro_batch=2)
    with pytest.raises(InputError, match="do not match"):
        forget_gradient(alone, IMAGES, CAPTIONS[:4], None, layers, draws=DRAWS, micro_batch=2)
    goal = neutral(alone, NEUTRAL[:2])
    with pytest.raises(InputError, match="do not match"):
        forget_gradient(alone, IMAGES, CAPTIONS, goal, layers, draws=DRAWS, micro_batch=2)
    with pytest.raises(ModelError, match="no weight"):
        forget_gradient(alone, IMAGES, CAPTIONS, None, ["clip.nothing"], draws=DRAWS, micro_batch=2)
    with pytest.raises(InputError, match="draws"):
        Draws(count=0)
    with pytest.raises(InputError, match="draws"):
        Draws(first=0.5, last=0.5)
