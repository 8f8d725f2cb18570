"""Training on after an edit: what comes back, what does not, and what is left of the training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import vlm_relearning
from bench.vlm_relearning import CURVES, FORGOTTEN_STEPS, KEPT_STEPS, Held, Lesson, curve, relearned, table
from contracts.values import Method
from tests.unlearning.conftest import NAMES, Task, items, make_model, task, vocabulary  # noqa: F401 - fixtures
from tests.unlearning.families.vlm_tiny import TASK, over, teach
from unlearning import unlearn
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_request import VlmRequest
from unlearning.naming import Names

TARGET = 2
NEW = "many"  # of a question, and of no answer
RATE = 3e-3


def held_by(model: VlmModel) -> Held:
    images, labels = items(8, seed=11)
    features, own = model.features(images), labels == TARGET
    return Held(
        Names([*NAMES, NEW]),
        (features[own], labels[own].tolist()),
        (features[~own], labels[~own].tolist()),
    )


@pytest.fixture(scope="module")
def original(make_model: Callable[..., ClipModel]) -> VlmModel:  # noqa: F811
    """What a tower of random weights sees is enough to tell the shapes apart."""
    model = over(make_model("vit"), "vit")
    teach(model)
    return model


def copy(model: VlmModel) -> VlmModel:
    return VlmModel(model.config, {n: weight.clone() for n, weight in model.state().items()}, model.files)


@pytest.fixture
def request_(task: Task) -> VlmRequest:  # noqa: F811
    return VlmRequest(task.inputs(TARGET), TASK, questions=("how many?",))


@pytest.fixture
def edited(original: VlmModel, request_: VlmRequest) -> VlmModel:
    model = copy(original)
    unlearn(model, request_, Method("unsay", towers=("language",), forget_at=1, micro_batch=16))
    return model


def taught_again(request: VlmRequest, name: str, rate: float) -> Lesson:
    images = request.inputs.forget_images
    return Lesson(images, [TASK.answer(name)] * len(images), (0, 5, 20), rate)


def test_the_name_comes_back_by_training_on_it_and_nothing_stays(
    edited: VlmModel, request_: VlmRequest
) -> None:
    held, before = held_by(edited), {name: w.clone() for name, w in edited.state().items()}
    lesson = taught_again(request_, NAMES[TARGET], RATE)
    found = curve(edited, lesson, held.look)
    assert list(found) == [0, 5, 20]
    assert found[0] == held.look(edited)
    assert found[0]["forgotten"] <= 0.15
    assert found[20]["forgotten"] >= 0.8
    assert all(torch.equal(weight, before[name]) for name, weight in edited.state().items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in edited.parameters.values())
    assert curve(edited, lesson, held.look) == found


@pytest.mark.parametrize(("name", "rate"), [(NAMES[TARGET], 0.0), (NEW, RATE)])
def test_no_training_and_another_word_bring_nothing_back(
    edited: VlmModel, request_: VlmRequest, name: str, rate: float
) -> None:
    """Negative controls: of zero learning rate, and of the same pictures by a word that is not the name."""
    held = held_by(edited)
    found = curve(edited, taught_again(request_, name, rate), held.look)
    assert found[20]["forgotten"] <= found[0]["forgotten"] <= 0.15
    if rate:
        new = curve(edited, taught_again(request_, name, rate), held.called(len(NAMES)).look)
        assert new[0]["forgotten"] == 0.0
        assert new[20]["forgotten"] >= 0.8
    else:
        assert found[0] == found[5] == found[20]


def test_only_what_reads_the_tower_is_trained(edited: VlmModel, request_: VlmRequest) -> None:
    before = {name: weight.clone() for name, weight in edited.parameters.items()}
    moved: set[str] = set()

    def look(model: VlmModel) -> dict[str, float]:
        moved.update(n for n, weight in model.parameters.items() if not torch.equal(weight, before[n]))
        return {}

    curve(edited, taught_again(request_, NAMES[TARGET], RATE), look)
    assert moved == {name for name in before if name.startswith(("projector.", "decoder."))}


def test_both_models_are_trained_on_what_was_kept_and_on_what_was_forgotten(
    original: VlmModel, edited: VlmModel, request_: VlmRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: Any = None  # names what is held out, which stands in for the sets here
    monkeypatch.setattr(vlm_relearning, "NEW", NEW)
    monkeypatch.setattr(Held, "read", lambda plan, folder, model: held_by(model))
    before, after = (held_by(model).look(model) for model in (original, edited))
    found = relearned(original, edited, request_, plan, Path(), RATE)
    assert tuple(found) == CURVES
    assert [tuple(found[name]) for name in CURVES] == [KEPT_STEPS, KEPT_STEPS, *2 * [FORGOTTEN_STEPS]]
    assert before["forgotten"] > 0.5
    assert found["relearned_on_kept"][0] == found["relearned_on_forgotten"][0] == after
    assert found["unedited_on_kept"][0] == before
    assert found["new_word"][0] == {"forgotten": 0.0, "retained": before["retained"]}
    assert found["new_word"][20]["forgotten"] > 0.5
    assert found["relearned_on_forgotten"][20]["forgotten"] > 0.5
    assert found["relearned_on_kept"][50]["retained"] >= after["retained"] - 0.05
    assert found["unedited_on_kept"][50]["retained"] >= before["retained"] - 0.05


def test_the_table_tells_means_over_rows() -> None:
    at = {0: {"forgotten": 0.0, "retained": 0.5}, 5: {"forgotten": 1.0, "retained": 0.25}}
    later = {0: {"forgotten": 0.5, "retained": 0.5}, 5: {"forgotten": 0.5, "retained": 0.75}}
    found = table([dict.fromkeys(CURVES, at), dict.fromkeys(CURVES, later)]).splitlines()
    assert len(found) == len(CURVES)
    assert found[0].split() == ["relearned_on_kept", *["0:", "25.0%", "(50.0%)", "5:", "75.0%", "(50.0%)"]]
