"""Degenerate requests: the documented error or the documented result, never a silent NaN."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.conftest import NAMES, Task
from unlearning import ClipModel, UnlearnInputs, methods
from unlearning.request import Profile

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
ON_A_MODEL = settings(deadline=None, derandomize=True, max_examples=5)
ALL = ("slug", "slug-preconditioned", "erase-linear")
STEPPED = ("slug", "slug-preconditioned")
TARGET = 2
BLOCKS = [f"{at}transformer.resblocks.{i}" for at in ("", "visual.") for i in (0, 1)]


def method(name: str, **changes: Any) -> Method:
    own = Method(name=name, forget_at=2, micro_batch=16, retain_batch=24, search_steps=2)
    return replace(own, **changes)


def inputs(**changes: Any) -> UnlearnInputs:
    return Task(method("slug")).inputs(TARGET, **changes)


def state(model: ClipModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(
        torch.equal(
            t.flatten().contiguous().view(torch.uint8), other[name].flatten().contiguous().view(torch.uint8)
        )
        for name, t in one.items()
    )


@pytest.mark.parametrize("name", STEPPED)
@ON_A_MODEL
@given(st.sets(st.sampled_from(BLOCKS), min_size=1))
def test_a_layer_without_weight_or_gradient_is_never_stepped(
    fresh: Callable[[], ClipModel], name: str, dead: set[str]
) -> None:
    # c_proj of zeros has no norm to be relative to, and lets no gradient through to c_fc.
    model = fresh()
    zeroed = {f"{block}.mlp.c_proj.weight" for block in dead}
    for layer in zeroed:
        model.parameters[layer].data.zero_()
    without = zeroed | {f"{block}.mlp.c_fc.weight" for block in dead}
    outcome = methods.unlearn(model, inputs(), method(name))
    (scores,) = outcome.profile.values()
    for score in scores:
        assert math.isfinite(score.importance)
        assert math.isfinite(score.alignment)
        if score.layer in without:
            assert (score.importance, score.on_front) == (0.0, False), score.layer
    assert not {t.layer for t in outcome.trials} & without
    assert all(math.isfinite(v) for t in outcome.trials for v in (t.step_size, t.forget_rate, t.forget_score))


@pytest.mark.parametrize("name", ALL)
def test_a_tower_in_which_nothing_can_be_stepped_is_refused(
    fresh: Callable[[], ClipModel], name: str
) -> None:
    # A projection of zeros: every text has the same feature, and no gradient reaches the blocks.
    model = fresh()
    model.parameters["text_projection"].data.zero_()
    before = state(model)
    options = {"layer": "text_projection"} if name == "erase-linear" else {}
    with pytest.raises(ModelError, match="no layer"):
        methods.unlearn(model, inputs(), method(name, towers=("text",), options=options))
    assert same_bits(before, state(model))


@pytest.mark.parametrize("name", ALL)
@ON_A_MODEL
@given(place=st.integers(0, 10**6), towers=st.sampled_from([("vision",), ("text",), ("vision", "text")]))
def test_a_weight_that_is_not_a_number_is_an_error_and_no_edit(
    fresh: Callable[[], ClipModel], name: str, place: int, towers: tuple[str, ...]
) -> None:
    model = fresh()
    layers = [c.name for c in model.candidates()]
    weight = model.parameters[layers[place % len(layers)]]
    weight.data.view(-1)[place % weight.numel()] = math.nan
    before = state(model)
    with pytest.raises(ModelError):
        methods.unlearn(model, inputs(), method(name, towers=towers))
    assert same_bits(before, state(model))


@pytest.mark.parametrize("name", STEPPED)
@ON_A_MODEL
@given(value=st.sampled_from([math.nan, math.inf, -math.inf]), alone=st.booleans())
def test_a_direction_that_is_not_finite_is_never_taken(
    fresh: Callable[[], ClipModel], name: str, value: float, alone: bool
) -> None:
    model = fresh()
    before = state(model)
    good, bad = "text_projection", "transformer.resblocks.0.mlp.c_fc.weight"
    directions = {layer: torch.ones_like(model.parameters[layer]) for layer in (good, bad)}
    directions[bad].view(-1)[7] = value
    if alone:
        del directions[good]
    request = inputs()
    concept = request.class_ids[TARGET]
    profile = Profile({concept: ()}, {concept: directions})
    if alone:
        with pytest.raises(ModelError, match="no layer"):
            methods.edit(model, request, method(name), profile)
        assert same_bits(before, state(model))
        return
    outcome = methods.edit(model, request, method(name), profile)
    assert [edit.layer for edit in outcome.edits] == [good]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters.values())


@pytest.mark.parametrize("name", STEPPED)
@ON_A_MODEL
@given(n=st.integers(1, 3), repeats=st.integers(2, 4))
def test_one_forget_item_will_do_and_its_doubles_add_nothing(
    fresh: Callable[[], ClipModel], name: str, n: int, repeats: int
) -> None:
    model, whole = fresh(), inputs()

    def profile(rows: np.ndarray) -> Profile:
        labels = whole.forget_labels[rows]
        request = inputs(
            forget_images=whole.forget_images[rows],
            forget_captions=(f"a {NAMES[TARGET]}",) * len(rows),
            forget_labels=labels,
        )
        return methods.profile(model, request, method(name))

    once, often = profile(np.arange(n)), profile(np.tile(np.arange(n), repeats))
    (directions,), (repeated,) = once.directions.values(), often.directions.values()
    assert set(directions) == set(repeated)
    for layer, direction in directions.items():
        assert bool(torch.isfinite(direction).all())
        torch.testing.assert_close(
            repeated[layer], direction, rtol=1e-3, atol=1e-4 * float(direction.abs().max()), msg=layer
        )


@pytest.mark.parametrize("name", ALL)
def test_the_smallest_request_there_is(fresh: Callable[[], ClipModel], name: str) -> None:
    # One forget item, two retain items, one search item of each kind, two classes.
    whole, model = inputs(), fresh()
    kept = int(np.flatnonzero(whole.search_labels != TARGET)[0])
    rows = [int(np.flatnonzero(whole.search_labels == TARGET)[0]), kept]
    other = int(whole.search_labels[kept])
    request = UnlearnInputs(
        class_ids=("c-0", "c-1"),
        class_names=(whole.class_names[TARGET], whole.class_names[other]),
        templates=("a {}",),
        targets=(0,),
        forget_images=whole.forget_images[:1],
        forget_captions=whole.forget_captions[:1],
        forget_labels=np.zeros(1, np.int64),
        retain_images=whole.retain_images[:2],
        retain_captions=("a red cross", "a blue square"),
        search_images=whole.search_images[rows],
        search_labels=np.array([0, 1]),
    )
    outcome = methods.unlearn(model, request, method(name, forget_at=1))
    assert len(outcome.edits) >= 1
    assert all(math.isfinite(edit.step_size) and edit.relative_change > 0 for edit in outcome.edits)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters.values())


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `UnlearnInputs` that hold together."""
    n = draw(st.integers(2, 5))
    targets = draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True))
    forget = targets + draw(st.lists(st.sampled_from(targets), max_size=3))
    search = draw(st.permutations([*range(n), *draw(st.lists(st.integers(0, n - 1), max_size=3))]))
    return {
        "class_ids": tuple(f"c-{i}" for i in range(n)),
        "class_names": tuple(f"x{i}" for i in range(n)),
        "templates": ("a {}",),
        "targets": tuple(targets),
        "forget_images": pictures(len(forget)),
        "forget_captions": ("x",) * len(forget),
        "forget_labels": np.array(forget),
        "retain_images": pictures(3),
        "retain_captions": ("a", "b", "a"),
        "search_images": pictures(len(search)),
        "search_labels": np.array(search),
    }


def pictures(n: int) -> np.ndarray:
    return np.zeros((n, 4, 4, 3), np.uint8)


def with_forget(labels: list[int]) -> dict[str, Any]:
    n = len(labels)
    return {
        "forget_images": pictures(n),
        "forget_captions": ("x",) * n,
        "forget_labels": np.array(labels, np.int64),
    }


def with_search(labels: list[int]) -> dict[str, Any]:
    return {"search_images": pictures(len(labels)), "search_labels": np.array(labels, np.int64)}


def without(labels: np.ndarray, label: int) -> list[int]:
    return [other for other in labels.tolist() if other != label]


CONTRADICTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "a name too many": lambda a: {"class_names": (*a["class_names"], "x")},
    "an id twice": lambda a: {"class_ids": (*a["class_ids"][:-1], a["class_ids"][0])},
    "no target": lambda a: {"targets": ()},
    "a target twice": lambda a: {"targets": (*a["targets"], a["targets"][0])},
    "a target beyond the classes": lambda a: {"targets": (*a["targets"], len(a["class_ids"]))},
    "a target before the classes": lambda a: {"targets": (*a["targets"], -1)},
    "nothing to forget": lambda a: with_forget([]),
    "a forget caption lost": lambda a: {"forget_captions": a["forget_captions"][:-1]},
    "a forget label lost": lambda a: {"forget_labels": a["forget_labels"][:-1]},
    "a stranger in the forget set": lambda a: with_forget(
        [*a["forget_labels"].tolist(), min(set(range(len(a["class_ids"]))) - set(a["targets"]))]
    ),
    "a target without forget items": lambda a: with_forget(without(a["forget_labels"], a["targets"][0])),
    "nothing to retain": lambda a: {"retain_images": pictures(0), "retain_captions": ()},
    "a retain caption lost": lambda a: {"retain_captions": a["retain_captions"][:-1]},
    "one retain caption for all": lambda a: {"retain_captions": ("a",) * 3},
    "nothing to search": lambda a: with_search([]),
    "a search label lost": lambda a: {"search_labels": a["search_labels"][:-1]},
    "a target without search items": lambda a: with_search(without(a["search_labels"], a["targets"][0])),
    "nothing to keep in the search set": lambda a: with_search(list(a["targets"])),
    "a search label beyond the classes": lambda a: with_search(
        [*a["search_labels"].tolist(), len(a["class_ids"])]
    ),
    "a search label before the classes": lambda a: with_search([*a["search_labels"].tolist(), -1]),
}


@PROPERTY
@given(arguments())
def test_inputs_that_hold_together_are_taken(drawn: dict[str, Any]) -> None:
    assert UnlearnInputs(**drawn).targets == drawn["targets"]


@pytest.mark.parametrize("contradiction", CONTRADICTIONS)
@settings(deadline=None, derandomize=True, max_examples=15)
@given(arguments())
def test_inputs_with_one_contradiction_are_refused(contradiction: str, drawn: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        UnlearnInputs(**{**drawn, **CONTRADICTIONS[contradiction](drawn)})
