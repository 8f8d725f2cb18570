"""Degenerate requests to the methods that are not SLUG's: a result or one clear error, and no half edits."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.conftest import NAMES
from tests.unlearning.test_properties_degenerate import (
    inputs,
    method,
    same_bits,
    state,
)
from unlearning import ClipModel, UnlearnInputs, methods
from unlearning.attempts import trainable
from unlearning.request import Outcome

OPTIONS: dict[str, dict[str, Any]] = {
    "ccup": {},
    "per-tower": {},
    "razor": {"expansions": 1},
    "ssd": {"items": 6, "selections": [1.0], "dampenings": [0.1]},
    "uce": {},
}
ALL = tuple(OPTIONS)


def told(name: str, **changes: Any) -> Method:
    return method(name, **{"towers": ("vision", "text"), "options": OPTIONS[name], **changes})


def attempted(model: ClipModel, request: UnlearnInputs, asked: Method) -> Outcome | None:
    """The outcome with weights that are finite; None after an error, with the weights as they were."""
    before = state(model)
    try:
        outcome = methods.unlearn(model, request, asked)
    except (InputError, ModelError):
        assert same_bits(before, state(model))
        return None
    assert all(
        math.isfinite(edit.step_size) and math.isfinite(edit.relative_change) for edit in outcome.edits
    )
    assert all(math.isfinite(t.forget_rate) and math.isfinite(t.forget_score) for t in outcome.trials)
    touched = {edit.layer for edit in outcome.edits}
    assert all(bool(torch.isfinite(model.parameters[layer]).all()) for layer in touched)
    return outcome


def of_rows(forget: np.ndarray, retain: np.ndarray, captions: tuple[str, ...] | None = None) -> UnlearnInputs:
    whole = inputs()
    return inputs(
        forget_images=whole.forget_images[forget],
        forget_captions=tuple(whole.forget_captions[i] for i in forget),
        forget_labels=whole.forget_labels[forget],
        retain_images=whole.retain_images[retain],
        retain_captions=captions or tuple(whole.retain_captions[i] for i in retain),
    )


@pytest.mark.parametrize("name", ALL)
def test_the_smallest_request_there_is(fresh: Callable[[], ClipModel], name: str) -> None:
    # One forget item and two retain items.
    request = of_rows(np.arange(1), np.arange(2), (f"a {NAMES[0]}", f"a {NAMES[1]}"))
    assert attempted(fresh(), request, told(name)) is not None


@pytest.mark.parametrize("name", ALL)
def test_doubles_of_every_item(fresh: Callable[[], ClipModel], name: str) -> None:
    twice = of_rows(np.repeat(np.arange(3), 2), np.repeat(np.arange(6), 2))
    assert attempted(fresh(), twice, told(name)) is not None


@pytest.mark.parametrize("name", ALL)
def test_the_same_picture_everywhere(fresh: Callable[[], ClipModel], name: str) -> None:
    whole = inputs()
    request = replace(
        whole,
        forget_images=np.zeros_like(whole.forget_images),
        retain_images=np.zeros_like(whole.retain_images),
    )
    attempted(fresh(), request, told(name))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "layer", ["text_projection", "visual.proj", "transformer.resblocks.1.mlp.c_proj.weight"]
)
def test_a_weight_that_is_not_a_number(fresh: Callable[[], ClipModel], name: str, layer: str) -> None:
    model = fresh()
    model.parameters[layer].data.view(-1)[7] = math.nan
    assert attempted(model, inputs(), told(name)) is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "layer", ["text_projection", "visual.proj", "transformer.resblocks.1.mlp.c_proj.weight"]
)
def test_a_weight_of_zeros(fresh: Callable[[], ClipModel], name: str, layer: str) -> None:
    # A projection of zeros gives one feature to all, and lets no gradient through.
    model = fresh()
    model.parameters[layer].data.zero_()
    attempted(model, inputs(), told(name))


@pytest.mark.parametrize("name", ["ccup", "razor", "ssd", "uce"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_tower_without_any_weight(fresh: Callable[[], ClipModel], name: str, tower: Any) -> None:
    model = fresh()
    for own in trainable(model, (tower,)):
        model.parameters[own].data.zero_()
    attempted(model, inputs(), told(name, towers=(tower,)))
