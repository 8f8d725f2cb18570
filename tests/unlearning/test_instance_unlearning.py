"""Forgetting by training, for restorers: the attack, its control, and what holds the rest in place."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.errors import InputError
from tests.unlearning.restoration_trained import DARK, METHOD, NOISY, pairs, sets, trained
from unlearning import methods
from unlearning.adversarial import attack, random_like
from unlearning.families import FAMILIES
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_split import mean_squares, psnr
from unlearning.methods.instance_unlearning import _anchors

RADIUS = 0.05


@pytest.fixture(scope="module")
def model() -> RestorationModel:
    return trained()


@pytest.fixture(scope="module")
def images(model: RestorationModel) -> torch.Tensor:
    return model.preprocess(sets().forget.degraded)


def rms(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1).square().mean(dim=1).sqrt()


def told(**options: Any) -> Any:
    budget = {"learning_rates": [1e-3], "steps": 40, "batch": 6, "attack_steps": 4}
    return replace(METHOD, name="instance-unlearning", options={**budget, **options})


def gains(model: RestorationModel, label: int) -> torch.Tensor:
    shown = pairs(10, seed=9).of([label])
    clean = model.preprocess(shown.clean)
    before = mean_squares(model.preprocess(shown.degraded), clean)
    return psnr(mean_squares(model.restore(shown.degraded), clean)) - psnr(before)


def test_methods_are_listed_by_family() -> None:
    for_all = ("ascent-finetuning", "gradient-ascent", "slug", "slug-preconditioned")
    assert methods.names("diffusion") == (*for_all, "uce-cross-attention")
    assert methods.names("restoration") == tuple(sorted((*for_all, "instance-unlearning")))
    assert methods.names("vlm") == tuple(sorted((*for_all, "scrub", "unsay")))
    assert "instance-unlearning" not in methods.names("clip")
    assert set().union(*(methods.names(family) for family in FAMILIES)) == set(methods.names())


def test_an_attacked_image_is_near_and_left_as_it_is(model: RestorationModel, images: torch.Tensor) -> None:
    attacked = attack(model, images, RADIUS, 8)
    assert float(rms(attacked - images).max()) <= RADIUS * 1.001
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1
    with torch.no_grad():
        moved = (model.forward(attacked) - images).abs().mean()
        assert float(moved) < 0.9 * float((model.forward(images) - images).abs().mean())


def test_the_control_is_as_far_and_no_attack(model: RestorationModel, images: torch.Tensor) -> None:
    attacked = attack(model, images, RADIUS, 8)
    drawn = random_like(images, attacked, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rms(drawn - images), rms(attacked - images), rtol=0.02, atol=0)
    with torch.no_grad():
        assert float((model.forward(drawn) - images).abs().mean()) > float(
            (model.forward(attacked) - images).abs().mean()
        )


def test_anchors_are_free_where_the_forget_images_need_a_weight_most(
    model: RestorationModel, images: torch.Tensor
) -> None:
    names = ("output.weight", "patch_embed.proj.weight")
    found = _anchors(model, images, names)
    assert set(found) == set(names)
    needed = {name: torch.zeros_like(model.parameters[name]) for name in names}
    weights = [model.parameters[name].requires_grad_() for name in names]
    for image in images:
        length = model.forward(image[None]).square().sum().sqrt()
        for name, gradient in zip(names, torch.autograd.grad(length, weights), strict=True):
            needed[name] += gradient.abs()
    model.net.requires_grad_(False)
    for name, anchor in found.items():
        share = (needed[name] - needed[name].min()) / (needed[name].max() - needed[name].min())
        assert float(anchor.flatten()[needed[name].argmax()]) == pytest.approx(0.0, abs=1e-5)
        assert float(anchor.flatten()[needed[name].argmin()]) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(anchor, 1 - share, rtol=0, atol=1e-4)


@pytest.mark.parametrize("forget", ["ascent", "identity"])
@pytest.mark.parametrize("protect", ["adversarial", "random", "retained", "answers", "none"])
def test_every_variant_forgets_and_stops_there(forget: str, protect: str) -> None:
    model = trained()
    dark = float(gains(model, DARK).mean())
    outcome = methods.unlearn(model, sets().request(), told(forget=forget, protect=protect))
    assert outcome.reached_target
    assert float(gains(model, DARK).mean()) < 0.5 * dark
    # The last trial is the first that reached the target: training ended there.
    assert [t.forget_rate <= METHOD.forget_target for t in outcome.trials] == [
        *[False] * (len(outcome.trials) - 1),
        True,
    ]
    assert {edit.tower for edit in outcome.edits} == {"net"}


def test_retained_pairs_hold_the_rest_in_place() -> None:
    kept = {}
    for protect in ("none", "retained"):
        model = trained()
        methods.unlearn(model, sets().request(), told(protect=protect, weight=4.0))
        kept[protect] = float(gains(model, NOISY).mean())
    assert kept["retained"] > kept["none"]


@pytest.mark.parametrize("distance", ["l1", "log-mse"])
def test_a_whole_schedule_leaves_no_single_image_out(distance: str) -> None:
    """A stopped run ends when half of the images are at the input's level, whatever the others are at."""
    spread, taken = {}, {}
    for schedule in ("stop", "full"):
        model = trained()
        method = told(forget="identity", protect="answers", distance=distance, schedule=schedule)
        outcome = methods.unlearn(model, sets().request(), method)
        found = gains(model, DARK)
        spread[schedule] = float(found.max() - found.min())
        taken[schedule] = outcome.edits[0].step_size / 1e-3
    assert spread["full"] < 0.7 * spread["stop"]
    assert taken["full"] == pytest.approx(40)
    assert taken["stop"] < 40


def test_visible_says_from_where_on_an_image_counts_as_known() -> None:
    request = replace(sets().request(), visible=100.0)
    model = trained()
    for asked, known in ((sets().request(), True), (request, False)):
        seen = asked.search_split(model, METHOD).view({}).forgetting([DARK])
        assert seen is not None
        assert (seen.rate > 0, seen.margin > 0) == (known, known)


def test_unless_told_an_image_counts_as_known_from_where_the_request_says() -> None:
    known = {}
    for asked in (0.0, 100.0):
        for options in ({}, {"visible": 0.0}, {"visible": 100.0}):
            method = told(protect="none", steps=1, **options)
            outcome = methods.unlearn(trained(), replace(sets().request(), visible=asked), method)
            known[asked, options.get("visible")] = outcome.curve[0].forget_rate > 0
    assert known == {(by, own): (by if own is None else own) == 0.0 for by, own in known}


def test_importance_holds_weights_that_others_need() -> None:
    moved = {}
    for importance in (0.0, 1e4):
        model, before = trained(), trained()
        method = told(protect="none", importance=importance, steps=15, learning_rates=[5e-4])
        methods.unlearn(model, sets().request(), replace(method, forget_target=0.0))
        changes = [(model.parameters[n] - p).square().sum() for n, p in before.parameters.items()]
        moved[importance] = float(torch.stack(changes).sum())
    assert moved[1e4] < moved[0.0]


def test_the_same_request_trains_to_the_same_bits() -> None:
    found = []
    for _ in range(2):
        model = trained()
        methods.unlearn(model, sets().request(seed=3), told(protect="random"))
        found.append(model.net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"weight": -1.0}, "weight"),
        ({"radius": float("nan")}, "radius"),
        ({"attack_steps": 0}, "attack_steps"),
        ({"protect": "prayer"}, "protect"),
        ({"steps": 0}, "steps"),
        ({"visible": -1.0}, "visible"),
        ({"schedule": "full"}, "ascent has no end"),
        ({"distance": "log-mse"}, "ascent has no end"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        methods.check(told(**options), n_classes=2, family="restoration")
