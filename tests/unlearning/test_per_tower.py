"""per-tower: each tower forgets by itself, and the parts are what they would be alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.methods import uce
from unlearning.retain_statistics import KnownRetain, measure
from unlearning.search_split import SearchSplit

TARGET = 2


def told(task: Any, **options: Any) -> Method:
    method: Method = replace(task.method, name="per-tower", towers=("vision", "text"), options=options)
    return method


def weights(model: ClipModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.net.state_dict().items()}


def test_each_tower_forgets_by_itself(model: ClipModel, task: Any) -> None:
    inputs, before = task.inputs(TARGET), weights(model)
    assert forget_rate(model, task) > 0.5  # negative control: the base model knows it
    outcome = methods.unlearn(model, inputs, told(task))
    after = weights(model)
    assert outcome.reached_target
    assert {edit.tower for edit in outcome.edits} == {"vision", "text"}
    for tower in ("vision", "text"):
        own = {edit.layer for edit in outcome.edits if edit.tower == tower}
        model.net.load_state_dict({**before, **{name: after[name] for name in own}})
        assert forget_rate(model, task) == 0.0, f"only the {tower} tower is the edited one"


def test_the_parts_are_what_they_are_alone(model: ClipModel, task: Any) -> None:
    inputs, before = task.inputs(TARGET), weights(model)
    outcome = methods.unlearn(model, inputs, told(task))
    both = weights(model)
    alone: dict[str, torch.Tensor] = {}
    for name, tower, options in (("erase-linear", "vision", {"shrinkage": 0.5}), ("uce", "text", {})):
        model.net.load_state_dict(before)
        method = replace(task.method, name=name, towers=(tower,), options=options)
        edits = methods.unlearn(model, inputs, method).edits
        assert edits == tuple(edit for edit in outcome.edits if edit.tower == tower)
        alone |= {edit.layer: weights(model)[edit.layer] for edit in edits}
    assert all(torch.equal(both[name], alone.get(name, before[name])) for name in before)


def test_the_curve_starts_at_the_base_model_and_passes_the_edit(model: ClipModel, task: Any) -> None:
    inputs, base = task.inputs(TARGET), forget_rate(model, task)
    outcome = methods.unlearn(model, inputs, told(task))
    curve = {point.step_size: point for point in outcome.curve}
    assert curve[0.0].forget_rate == base
    seen = SearchSplit(model, inputs, told(task)).view({"vision": 0, "text": 0}).both(inputs.targets)
    assert seen is not None
    assert curve[1.0].forget_rate == seen[0].rate
    assert curve[1.0].retained_rate == seen[1]


def test_a_part_may_have_its_own_method_options_and_stop(model: ClipModel, task: Any) -> None:
    options = {
        "vision": {"name": "slug", "forget_at": 1},
        "text": {"name": "slug-preconditioned", "options": {"epsilon": 0.1}},
    }
    outcome = methods.unlearn(model, task.inputs(TARGET), told(task, **options))
    assert len(outcome.edits) == 2
    assert outcome.reached_target
    wanted = methods.statistics(told(task, **options), seed=3)
    assert wanted is not None
    assert wanted.towers == ("text",)
    assert methods.statistics(told(task), seed=3) is None


def test_statistics_that_one_part_asks_for_are_kept_from_the_other(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET)
    first, own = {"name": "slug-preconditioned"}, {"choose": "pareto"}
    method = told(task, vision=first, text={**first, "options": own})
    wanted = methods.statistics(method, inputs.seed)
    assert wanted is not None
    assert wanted.towers == ("vision",)
    statistics = measure(model, inputs.retain_images, inputs.retain_captions, wanted, micro_batch=16)
    nothing_left_out = KnownRetain(statistics, torch.arange(0), inputs.retain_images[:0], ())
    known = replace(inputs, known_retain=nothing_left_out)
    found = methods.profile(model, known, method)
    # Each part as by itself, the one with what is known and the other one without.
    for tower, options, usable in (("vision", {}, known), ("text", own, inputs)):
        alone = replace(task.method, name="slug-preconditioned", towers=(tower,), options=options)
        profile = methods.profile(model, usable, alone)
        for label, directions in profile.directions.items():
            part = found.directions[f"{tower}:{label}"]
            assert list(part) == list(directions)
            assert all(torch.equal(part[layer], own) for layer, own in directions.items())


def test_a_part_that_takes_all_concepts_together_stands_beside_one_that_does_not(
    model: ClipModel, task: Any
) -> None:
    inputs = task.inputs(TARGET, (TARGET + 3) % 8)
    outcome = methods.unlearn(model, inputs, told(task, text={"name": "slug-preconditioned"}))
    assert {edit.tower for edit in outcome.edits} == {"vision", "text"}
    assert all(set(edit.concepts) == {inputs.class_ids[t] for t in inputs.targets} for edit in outcome.edits)


def test_a_failing_part_leaves_the_old_weights(
    model: ClipModel, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, before = task.inputs(TARGET), weights(model)
    profile = methods.profile(model, inputs, told(task))

    def fail(*_: Any) -> Any:
        raise ModelError("no step")

    monkeypatch.setattr(uce, "edit", fail)
    with pytest.raises(ModelError, match="no step"):
        methods.edit(model, inputs, told(task), profile)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


# Always adds layers: no first round reaches a target without a step, and each adds one.
ADDING = {"name": "razor", "options": {"threshold": 1.0, "stable": 1.0, "expansions": 3}}


def test_layers_that_a_part_adds_are_put_back_before_the_next_one(
    model: ClipModel, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, before = task.inputs(TARGET), weights(model)
    method = told(task, vision=ADDING)
    profile = methods.profile(model, inputs, method)
    search, found_at = uce.edit, []

    def listening(*arguments: Any) -> Any:
        found_at.append(weights(model))
        return search(*arguments)

    monkeypatch.setattr(uce, "edit", listening)
    outcome = methods.edit(model, inputs, method, profile)
    planned = {layer for label, own in profile.directions.items() if "vision" in label for layer in own}
    assert {edit.layer for edit in outcome.edits if edit.tower == "vision"} > planned, "nothing was added"
    assert all(torch.equal(found_at[0][name], before[name]) for name in before)
    after = weights(model)
    assert {name for name in before if not torch.equal(after[name], before[name])} == {
        edit.layer for edit in outcome.edits
    }

    def fail(*_: Any) -> Any:
        raise ModelError("no step")

    model.net.load_state_dict(before)
    monkeypatch.setattr(uce, "edit", fail)
    with pytest.raises(ModelError, match="no step"):
        methods.edit(model, inputs, method, profile)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": {"name": "nonsense"}}, "unknown method 'nonsense'"),
        ({"text": {"name": "uce", "options": {"share": 2.0}}}, "share"),
        ({"vision": {"name": "per-tower"}}, "cannot be per-tower again"),
        ({"vision": {}}, "name"),
        ({"audio": {"name": "uce"}}, "audio"),
    ],
)
def test_bad_parts_are_refused_before_any_work(task: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        methods.check(told(task, **options), n_classes=8)


def test_one_tower_is_not_enough_and_trained_methods_plan_nothing(model: ClipModel, task: Any) -> None:
    with pytest.raises(InputError, match="both towers, got text"):
        methods.profile(model, task.inputs(TARGET), replace(told(task), towers=("text",)))
    trained = told(task, vision={"name": "fine-tuning"})
    with pytest.raises(InputError, match="fine-tuning plans no directions"):
        methods.profile(model, task.inputs(TARGET), trained)


def forget_rate(model: ClipModel, task: Any) -> float:
    inputs = task.inputs(TARGET)
    seen = SearchSplit(model, inputs, task.method).view({"vision": 0, "text": 0}).forgetting(inputs.targets)
    assert seen is not None
    return seen.rate
