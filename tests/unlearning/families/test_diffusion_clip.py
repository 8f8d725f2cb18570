"""The paper's way for text-to-image models: gradients of the CLIP whose text tower is read.

Sign, size and reach of these gradients are in the contract of families.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from tests.unlearning.diffusion_trained import METHOD, request
from tests.unlearning.families.conftest import diffusion
from tests.unlearning.families.test_diffusion_family import READS, shrunken
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel
from unlearning.families.diffusion_request import DiffusionRequest
from unlearning.retain_side import retain_gradient_and_moments

Make = Callable[..., ClipModel]


def by_clip(**changes: Any) -> DiffusionRequest:
    return request(objective="clip", **changes)


def text_layers(model: DiffusionModel) -> list[str]:
    return [c.name for c in model.candidates() if c.tower == "text"]


def silent(what: str, done: int, total: int) -> None:
    """Nothing is told."""


def test_gradients_are_the_clips_own(whole: DiffusionModel) -> None:
    told, layers, clip = by_clip(), text_layers(whole), whole.clip
    assert clip is not None
    shown = told.forget
    weights = [whole.parameters[layer].requires_grad_() for layer in layers]
    image = clip.image_features(clip.preprocess(shown.images))
    text = torch.nn.functional.normalize(clip.net.encode_text(clip.tokenize(shown.captions)), dim=-1)
    expected = torch.autograd.grad((1 - (image * text).sum(dim=1)).mean(), weights)
    found = told.forget_gradient(whole, told.targets, layers, 1)
    for layer, grad in zip(layers, expected, strict=True):
        torch.testing.assert_close(found[layer], grad, atol=1e-6, rtol=1e-4)
    retain, moments = retain_gradient_and_moments(
        told, whole, layers, METHOD, widest=1024, with_outputs=False, wanted=None, progress=silent
    )
    alone = told.retain_gradient(whole, layers, METHOD, silent)
    assert all(torch.allclose(retain[layer], alone[layer], atol=1e-6) for layer in layers)
    assert set(moments) == {layer for layer in layers if whole.parameters[layer].ndim > 1}


def test_the_unet_is_asked_nothing_and_pictures_say_how_far(whole: DiffusionModel) -> None:
    layers, told = text_layers(whole), by_clip()
    before = told.forget_gradient(whole, told.targets, layers, 8)
    with torch.no_grad():
        for name, weight in whole.parameters.items():
            if name.startswith("unet."):
                weight.zero_()
    after = told.forget_gradient(whole, told.targets, layers, 8)
    assert all(torch.equal(before[layer], after[layer]) for layer in layers)
    asked = request(model=whole).forget_gradient(whole, told.targets, layers, 8)
    assert not any(bool(asked[layer].any()) for layer in layers)


def test_without_its_clip_a_model_says_how_to_get_it(make_model: Make) -> None:
    alone, told = diffusion(make_model("vit"), whole=False), by_clip()
    method = replace(METHOD, objective="clip")
    before = {name: weight.clone() for name, weight in alone.parameters.items()}
    for name in ("slug", "slug-preconditioned"):
        with pytest.raises(InputError, match="the model has no matching CLIP: import it with --clip"):
            methods.unlearn(alone, told, replace(method, name=name))
    assert all(torch.equal(before[name], weight) for name, weight in alone.parameters.items())


def test_each_of_two_towers_has_a_clip_of_its_own(make_model: Make) -> None:
    both, told = shrunken(make_model, "SDXL"), by_clip()
    found = told.forget_gradient(both, told.targets, text_layers(both), 8)
    assert {layer.partition(".")[0] for layer in found} == {"clip", "clip2"}
    both.encoders[1].clip = None
    with pytest.raises(InputError, match="no matching CLIP for text tower 2"):
        told.forget_gradient(both, told.targets, text_layers(both), 8)
    first = [layer for layer in text_layers(both) if layer.startswith("clip.")]
    again = told.forget_gradient(both, told.targets, first, 8)
    assert all(torch.equal(again[layer], found[layer]) for layer in first)
    assert len(READS["SDXL"]) == 2


def test_a_clip_has_no_gradient_of_the_unet(whole: DiffusionModel) -> None:
    method = replace(METHOD, towers=("unet",), objective="clip")
    with pytest.raises(InputError, match=r"nothing of the UNet: .* towers: \[text\]"):
        methods.unlearn(whole, by_clip(), method)


def test_retain_captions_that_are_all_alike_are_refused(whole: DiffusionModel) -> None:
    told = by_clip()
    alike = replace(told.retain, captions=("a drawing",) * len(told.retain.captions))
    with pytest.raises(InputError, match="all alike"):
        replace(told, retain=alike).retain_gradient(whole, text_layers(whole), METHOD, silent)


@pytest.mark.parametrize(
    ("family", "told", "problem"),
    [
        (
            "diffusion",
            {"name": "slug", "towers": ["text"], "objective": "answers"},
            "of unet, clip, got 'answers'",
        ),
        ("vlm", {"name": "slug", "towers": ["vision"], "objective": "unet"}, "of answers, clip, got 'unet'"),
        ("restoration", {"name": "slug", "towers": ["net"], "objective": "clip"}, "cannot be chosen"),
        ("clip", {"name": "slug", "objective": "clip"}, "cannot be chosen"),
        (
            "diffusion",
            {"name": "uce-cross-attention", "towers": ["unet"], "objective": "clip"},
            "uce-cross-attention has an objective of its own",
        ),
        (
            "vlm",
            {"name": "scrub", "towers": ["vision"], "objective": "clip"},
            "scrub has an objective of its own",
        ),
    ],
)
def test_an_objective_that_nobody_would_go_by_is_refused_before_any_work(
    family: str, told: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        methods.check(from_plain(Method, told), n_classes=9, family=family)
    methods.check(replace(from_plain(Method, told), objective=None), n_classes=9, family=family)
