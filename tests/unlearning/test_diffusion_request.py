"""What a text-to-image model is asked to forget: objectives, and a search split that is drawn and judged."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import InputError
from tests.unlearning.diffusion_trained import (
    BLOCKS,
    CLASS_IDS,
    GROUNDS,
    METHOD,
    TEMPLATES,
    judge,
    neutral_captions,
    prompts,
    request,
    trained,
)
from unlearning import denoising, methods
from unlearning.drawing import draw
from unlearning.families.diffusion import Conditioning, DiffusionModel
from unlearning.families.diffusion_request import Drawings
from unlearning.families.diffusion_split import Prompts, margins
from unlearning.inplace import edited

RUBY = 0


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return trained()


def shows(model: DiffusionModel, seeds: range) -> dict[str, float]:
    """Share of pictures of unheard prompts whose block the judge names, of the target and of the others."""
    asked = prompts(TEMPLATES[2], seeds)
    hits = judge()(draw(model, asked.texts, asked.seeds)).objects.argmax(1).numpy() == asked.labels
    return {"ruby": hits[asked.labels == RUBY].mean(), "others": hits[asked.labels != RUBY].mean()}


def test_the_tiny_model_draws_what_it_is_told(model: DiffusionModel) -> None:
    # Without this every other test here would hold for a model that draws nothing.
    shown = shows(model, range(100, 103))
    assert shown["ruby"] > 0.6
    assert shown["others"] > 0.6


@pytest.mark.parametrize("name", ["slug", "slug-preconditioned"])
@pytest.mark.parametrize("tower", ["text", "unet"])
def test_a_step_forgets_a_block_in_unheard_prompts_and_changes_one_tensor(name: str, tower: Any) -> None:
    model = trained()
    before = {layer: weight.detach().clone() for layer, weight in model.net.state_dict().items()}
    known = shows(model, range(100, 103))
    outcome = methods.unlearn(model, request(model=model), replace(METHOD, name=name, towers=(tower,)))

    after = model.net.state_dict()
    assert [edit.layer for edit in outcome.edits] == [
        n for n in before if not torch.equal(before[n], after[n])
    ]
    assert len(outcome.edits) == 1
    assert outcome.edits[0].tower == tower
    assert outcome.reached_target
    shown = shows(model, range(100, 103))
    assert shown["ruby"] < 0.7 * known["ruby"]
    assert shown["others"] > shown["ruby"]


def test_the_goal_of_forgetting_stays_that_of_the_model_before_any_edit(model: DiffusionModel) -> None:
    # Else a method that trains would chase a goal that its own steps move.
    asked, layer = request(model=model), "clip.transformer.resblocks.0.mlp.c_fc.weight"
    shown, before = asked.forget, denoising.neutral(model, neutral_captions())

    def gradient(goal: Conditioning) -> torch.Tensor:
        told = {"draws": asked.draws, "micro_batch": 4}
        return denoising.forget_gradient(model, shown.images, shown.captions, goal, [layer], **told)[layer]

    change = 0.3 * torch.randn(model.parameters[layer].shape, generator=torch.Generator().manual_seed(0))
    with edited(model.parameters, {layer: change}):
        found = asked.forget_gradient(model, [RUBY], [layer], 4)[layer]
        assert torch.equal(found, gradient(before))
        moved = gradient(denoising.neutral(model, neutral_captions()))
    assert float((found - moved).norm()) > 0.05 * float(found.norm())


def test_a_view_sees_what_drawing_anew_shows(model: DiffusionModel) -> None:
    asked = request()
    split = asked.search_split(model, METHOD)
    layer = "clip.transformer.resblocks.0.mlp.c_fc.weight"
    tower, stage = split.place(layer)
    view = split.view({tower: stage})
    rows = asked.search.labels == RUBY
    change = 0.3 * torch.randn(model.parameters[layer].shape, generator=torch.Generator().manual_seed(0))
    with edited(model.parameters, {layer: change}):
        said = judge()(draw(model, asked.search.texts, asked.search.seeds))
        found = margins(said.objects, torch.from_numpy(asked.search.labels)).numpy()
        grounds = margins(said.styles, torch.from_numpy(asked.search.others)).numpy()
        seen, both = view.forgetting([RUBY]), view.both([RUBY])
        kept = view.retained_rate_if(lambda most: True)
    assert seen is not None
    assert both is not None
    assert seen.rate == seen.rates[RUBY] == float((found[rows] >= 0).mean())
    assert seen.score == pytest.approx(float(found[rows].mean()), abs=1e-3)
    assert seen.margin == pytest.approx(float(found[rows].max()), abs=1e-3)  # no picture may stay known
    assert both[0].score == pytest.approx(seen.score, abs=1e-3)
    assert both[1] == kept == float(((found > 0) & (grounds > 0))[~rows].mean())
    assert kept < float((found[~rows] > 0).mean())  # the change costs grounds, which blocks alone do not tell
    # and without the change it is what the split knew
    known = split.view({}).forgetting([RUBY])
    assert known is not None
    assert known.score != pytest.approx(seen.score, abs=1e-2)


def test_what_is_retained_is_counted_only_while_it_can_be_enough(model: DiffusionModel) -> None:
    split = request().search_split(model, METHOD)
    view, asked = split.view({"text": 0}), []
    rate = view.retained_rate_if(lambda most: asked.append(most) or True)
    assert rate is not None
    assert asked == sorted(asked, reverse=True)
    assert asked[-1] >= rate
    assert view.retained_rate_if(lambda most: False) is None
    assert view.retained_rate_if(lambda most: most > 1.5) is None


def test_a_model_that_breaks_is_seen_as_broken(model: DiffusionModel) -> None:
    view, layer = request().search_split(model, METHOD).view({"text": 0}), "clip.ln_final.weight"
    with edited(model.parameters, {layer: torch.full_like(model.parameters[layer], float("nan"))}):
        assert view.forgetting([RUBY]) is None
        assert view.both([RUBY]) is None
        assert view.retained_rate_if(lambda most: True) == 0.0


def test_pictures_of_the_search_do_not_depend_on_what_is_drawn_beside_them(model: DiffusionModel) -> None:
    split = request().search_split(model, METHOD)
    alone = split.judged(torch.tensor([3]))
    assert torch.allclose(alone.own[0], split.known.own[3], atol=1e-2)
    assert torch.allclose(alone.other[0], split.known.other[3], atol=1e-2)


def test_the_search_draws_no_more_pictures_at_once_than_the_method_says(
    model: DiffusionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, read = [], model.conditioning

    def watched(tokens: Any) -> Any:
        sizes.append(len(tokens[0]))
        return read(tokens)

    monkeypatch.setattr(model, "conditioning", watched)
    asked = request()
    asked.search_split(model, replace(METHOD, micro_batch=5))
    assert max(sizes) == 5
    assert sum(sizes) >= len(asked.search.texts)


def test_margins_are_those_of_the_nearest_other_class() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    assert margins(logits, torch.tensor([0, 0])).tolist() == [2.0, -2.0]
    assert margins(logits, torch.tensor([0, 0]), 2).tolist() == [3.0, -1.0]


@pytest.mark.parametrize("name", ["uce", "erase-linear", "fine-tuning", "instance-unlearning"])
def test_methods_of_other_families_are_refused(model: DiffusionModel, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} edits models of family .*, this one is of diffusion"):
        methods.unlearn(model, request(), replace(METHOD, name=name))


def test_the_pooled_feature_is_no_tower_of_this_family(model: DiffusionModel) -> None:
    with pytest.raises(InputError, match="towers must be of text, unet"):
        methods.unlearn(model, request(), replace(METHOD, towers=("vision",)))


def _labelled(items: Any, label: int) -> Any:
    """The items, those that are no rubies with a label that is not theirs."""
    return replace(items, labels=np.where(items.labels == RUBY, RUBY, label))


_NO_RUBY = prompts(TEMPLATES[1], range(1), tuple(BLOCKS)[1:])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"targets": (9,)}, "distinct classes"),
        ({"targets": (RUBY, RUBY)}, "distinct classes"),
        ({"forget": request("jade").forget}, f"{CLASS_IDS[RUBY]} has no item in the forget set"),
        ({"search": _NO_RUBY}, f"{CLASS_IDS[RUBY]} has no item in the search set"),
        ({"search": prompts(TEMPLATES[1], range(1), tuple(BLOCKS)[:1])}, "no item of a class to keep"),
        ({"retain": request().forget}, "the retain set has an item of a target"),
        ({"retain": _labelled(request().retain, 99)}, "retain labels must lie in 0..4, got 99..99"),
        ({"retain": _labelled(request().retain, -3)}, "retain labels must lie in 0..4, got -3..-3"),
        ({"search": _labelled(request().search, 99)}, "search labels must lie in 0..4"),
        ({"goal": Conditioning(torch.zeros(1, 2, 3))}, "1 goals, 2 forget captions"),
    ],
)
def test_sets_that_contradict_each_other_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        request(**change)


def test_sets_of_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="do not make a set"):
        Prompts(("a",), (1, 2), np.zeros(1, np.int64), np.zeros(1, np.int64))
    with pytest.raises(InputError, match="1 labels and 0 of the other axis do not make a set"):
        Prompts(("a",), (1,), np.zeros(1, np.int64), np.zeros(0, np.int64))
    with pytest.raises(InputError, match="do not make a set"):
        Drawings(np.zeros((0, 8, 8, 3), np.uint8), (), np.zeros(0, np.int64))
    assert len(prompts(TEMPLATES[0], range(2)).texts) == len(BLOCKS) * len(GROUNDS) * 2
