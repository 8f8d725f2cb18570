"""What every family promises to methods, registry and certificates.  A new family adds a line to `CASES`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning import diffusion_trained, restoration_trained
from tests.unlearning.conftest import Task
from tests.unlearning.families import vlm_tiny
from unlearning import attempts, families, methods
from unlearning.families.clip import ClipModel
from unlearning.families.config import family_of
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_request import VlmRequest
from unlearning.inplace import edited


@dataclass(frozen=True)
class Case:
    """A trained model, fresh at each call, a request to it, and how it is treated."""

    family: str
    model: Callable[[], Any]
    request: Any
    method: Method
    target: int


CASES = ("clip-vit", "clip-rn", "restoration", "vlm-vit", "vlm-rn", "diffusion")


@pytest.fixture(params=CASES)
def case(
    request: pytest.FixtureRequest,
    make_model: Callable[..., ClipModel],
    _trained: dict[str, dict[str, torch.Tensor]],
    task: Task,
    taught: Callable[[str], VlmModel],
) -> Case:
    if request.param.startswith("vlm"):
        kind = request.param.removeprefix("vlm-")
        method = replace(task.method, towers=("vision",), forget_at=1)
        return Case("vlm", lambda: taught(kind), VlmRequest(task.inputs(3), vlm_tiny.TASK), method, 3)
    if request.param == "restoration":
        sets = restoration_trained.sets()
        return Case("restoration", restoration_trained.trained, sets.request(), restoration_trained.METHOD, 0)
    if request.param == "diffusion":
        told, method = diffusion_trained.request(), diffusion_trained.METHOD
        return Case("diffusion", diffusion_trained.trained, told, method, 0)
    kind = request.param.removeprefix("clip-")

    def trained() -> ClipModel:
        model = make_model(kind)
        model.net.load_state_dict(_trained[kind])
        return model

    return Case("clip", trained, task.inputs(3), task.method, 3)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.net.state_dict().items()}


def test_a_family_is_found_by_the_name_that_its_models_bear(case: Case, tmp_path: Path) -> None:
    model = case.model()
    model.save(tmp_path)
    assert model.family == case.family == family_of(tmp_path)
    again = families.module(case.family).load(tmp_path)
    assert type(again) is type(model)
    assert {c.tower for c in model.candidates()} <= set(families.module(case.family).TOWERS)


def test_what_is_saved_is_loaded_bit_for_bit(case: Case, tmp_path: Path) -> None:
    model = case.model()
    digests = model.save(tmp_path / "one")
    again = families.module(case.family).load(tmp_path / "one")
    assert again.save(tmp_path / "two") == digests
    assert {"weights.safetensors", "config.json"} <= set(digests)
    assert all(torch.equal(again.net.state_dict()[n], tensor) for n, tensor in weights(model).items())


ASCENT = {"learning_rates": [1e-3], "steps": 3, "batch": 4}


@pytest.mark.parametrize(
    ("name", "options"), [("slug", {}), ("slug-preconditioned", {}), ("gradient-ascent", ASCENT)]
)
def test_the_same_request_changes_the_planned_tensors_alone_and_to_the_same_bits(
    case: Case, name: str, options: dict[str, Any]
) -> None:
    found = []
    for _ in range(2):
        model = case.model()
        before = weights(model)
        outcome = methods.unlearn(model, case.request, replace(case.method, name=name, options=options))
        after = weights(model)
        changed = {n for n in before if not torch.equal(before[n], after[n])}
        assert changed == {edit.layer for edit in outcome.edits}
        assert changed <= set(attempts.trainable(model, case.method.towers))  # biases beside weights
        found.append(after)
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_the_forget_objective_rises_along_a_small_step_and_falls_against_it(case: Case) -> None:
    model = case.model()
    layers = [candidate.name for candidate in model.candidates()]
    gradient = case.request.forget_gradient(model, [case.target], layers, 8)
    gains = []
    for sign in (1.0, -1.0):
        squared = sum(float(g.square().sum()) for g in gradient.values())
        updates = {n: g * sign * 1e-3 / squared**0.5 for n, g in gradient.items()}
        with edited(model.parameters, updates):
            stepped = case.request.forget_gradient(model, [case.target], layers, 8)
        gains.append(sum(float((stepped[n] * g).sum()) for n, g in gradient.items()) / squared)
    # The gradient points the same way on both sides of a small step.
    assert all(gain > 0 for gain in gains)


def test_every_candidate_is_used_downstream(case: Case) -> None:
    model = case.model()
    layers = [candidate.name for candidate in model.candidates()]
    retain = case.request.retain_gradient(model, layers, case.method, lambda *told: None)
    forget = case.request.forget_gradient(model, [case.target], layers, 8)
    idle = [layer for layer in layers if not bool(retain[layer].any()) and not bool(forget[layer].any())]
    assert idle == []


def test_a_view_of_an_unedited_model_sees_what_the_split_knows(case: Case) -> None:
    model = case.model()
    split = case.request.search_split(model, case.method)
    known = split.view({}).both([case.target])
    assert known is not None
    for candidate in model.candidates()[::9]:
        tower, stage = split.place(candidate.name)
        assert tower == candidate.tower
        seen = split.view({tower: stage}).both([case.target])
        assert seen is not None
        assert seen[0].rates == known[0].rates
        assert seen[0].score == pytest.approx(known[0].score, abs=1e-4)
        assert seen[1] == pytest.approx(known[1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"family": "audio"}, "audio"),
        ({"schema": 2}, "schema 1"),
    ],
)
def test_a_folder_of_another_family_or_schema_is_refused(
    case: Case, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    case.model().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=problem):
        families.module(case.family).load(tmp_path)


def test_an_unknown_field_of_a_method_is_refused(case: Case) -> None:
    method = replace(case.method, name="slug", options={"alignement": "signed"})
    with pytest.raises(InputError, match="alignement"):
        methods.unlearn(case.model(), case.request, method)


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown model family 'audio'; there are clip, restoration, vlm"):
        families.module("audio")
