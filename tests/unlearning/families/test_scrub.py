"""Training with the original as teacher: what each term does, and whole edits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import InputError
from contracts.values import Method
from tests.unlearning.conftest import NAMES, Task, items
from tests.unlearning.families.vlm_tiny import TASK
from unlearning import methods, unlearn
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_request import VlmRequest
from unlearning.methods.scrub import Options, _Batches, _Teacher
from unlearning.naming import Names

Taught = Callable[[str], VlmModel]
TARGET = 2
SMALL: dict[str, Any] = {"batch": 16, "views": 32, "steps": 40}


def told(**options: Any) -> Method:
    return Method(name="scrub", towers=("vision",), forget_at=1, micro_batch=16, options={**SMALL, **options})


def asked(task: Task) -> VlmRequest:
    return VlmRequest(task.inputs(TARGET), TASK, questions=("what is this?",))


def named(model: VlmModel) -> tuple[float, float]:
    """Shares of unseen drawings that are named: of the target, and of the others."""
    images, labels = items(8, seed=11)
    said = model.answers(images, [TASK.question] * len(images))
    right = np.array(Names(NAMES).ranks(said, labels.tolist())) == 1
    return right[labels == TARGET].mean(), right[labels != TARGET].mean()


def batches(model: VlmModel, request: VlmRequest, **weights: float) -> _Batches:
    options = Options(**{**SMALL, **weights})
    teacher = _Teacher.of(model, request, options, 16, lambda *told: None)
    return _Batches(model, request, options, teacher, 16)


@pytest.mark.parametrize(
    ("kind", "trained"),
    [("vit", {"transformer.resblocks.0."}), ("rn", {"layer2.0.", "layer3.0."})],
)
def test_the_name_goes_and_the_others_stay(taught: Taught, task: Task, kind: str, trained: set[str]) -> None:
    model = taught(kind)
    request, before = asked(task), named(model)
    weights = {name: weight.clone() for name, weight in model.state().items()}
    outcome = unlearn(model, request, told(learning_rates=[2e-3], steps=80))
    changed = {name for name, weight in model.state().items() if not torch.equal(weight, weights[name])}
    assert changed == {edit.layer for edit in outcome.edits}
    assert {own for own in trained for name in changed if name.startswith(f"visual.{own}")} == trained
    assert all(name.startswith(tuple(f"visual.{own}" for own in trained)) for name in changed)
    assert outcome.reached_target
    after = named(model)
    assert before[0] > 0.5
    assert after[0] <= 0.25
    assert after[1] >= before[1] - 0.15


def test_at_the_original_only_forgetting_has_a_loss(taught: Taught, task: Task) -> None:
    """What is held is the original's own, right or wrong, and is compared in the same order."""
    model, request = taught("rn"), asked(task)
    for term in ("names", "features", "answers"):
        weights = {"forget": 0.0, "names": 0.0, "features": 0.0, "answers": 0.0, term: 1.0}
        with torch.no_grad():
            assert float(batches(model, request, **weights).loss()) == pytest.approx(0, abs=1e-5)
            layer = [c.name for c in model.candidates() if c.tower == "vision"][-1]
            weight = model.parameters[layer]
            held = batches(model, request, **weights)
            weight.mul_(1.2)
            assert float(held.loss()) > 1e-4
            weight.div_(1.2)
    with torch.no_grad():
        nothing = batches(model, request, forget=0.0, names=0.0, features=0.0, answers=0.0).loss()
    assert float(nothing) == 0


def test_the_divergence_is_of_the_model_from_the_original(taught: Taught, task: Task) -> None:
    """Weighted by what the original expects; the other way round it is another number."""
    model = taught("vit")
    held = batches(model, asked(task))
    known, put = held._teacher.features[:6], held._teacher.named[:6]
    noise = torch.randn(known.shape, generator=torch.Generator().manual_seed(0))
    moved = known + 0.5 * known.std() * noise
    with torch.no_grad():
        found = float(held._divergence(moved, known, put))
        wanted, said = (model.forced(features, put).logits.softmax(dim=1) for features in (known, moved))
    there, back = (float((p * (p / q).log()).sum(dim=1).mean()) for p, q in ((wanted, said), (said, wanted)))
    assert abs(there - back) > 0.1 * there
    assert found == pytest.approx(there, rel=1e-3)


def test_forgetting_asks_no_more_than_its_goal(taught: Taught, task: Task) -> None:
    model, request = taught("vit"), asked(task)
    alone = {"forget": 1.0, "names": 0.0, "features": 0.0, "answers": 0.0}
    with torch.no_grad():
        far = float(batches(model, request, **alone, goal=8.0).loss())
        near = float(batches(model, request, **alone, goal=0.0).loss())
    assert far > 6  # the name is certain: nearly all of the way is left
    assert near < 0.7


def test_the_same_request_trains_to_the_same_bits(taught: Taught, task: Task) -> None:
    found = []
    for _ in range(2):
        model = taught("vit")
        unlearn(model, asked(task), told(steps=4))
        found.append({name: weight.clone() for name, weight in model.state().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"goal": -1.0}, "goal"),
        ({"features": float("nan")}, "features"),
        ({"forget_batch": 0}, "forget_batch"),
        ({"views": 8}, "views must be at least batch, 16, got 8"),
        ({"schedule": "forever"}, "schedule"),
        ({"question": "why?"}, "question"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        methods.check(told(**options), n_classes=8, family="vlm")


def test_it_is_for_the_tower_of_vision_language_models_alone(taught: Taught, task: Task) -> None:
    with pytest.raises(InputError, match=r"scrub trains the vision tower: .* \(--tower vision\)"):
        methods.profile(taught("vit"), asked(task), replace(told(), towers=("language",)))
    with pytest.raises(InputError, match="scrub"):
        methods.check(replace(told(), towers=("vision",)), n_classes=8, family="clip")
