"""uce: the least-squares rewrite against an oracle of its own, and what it does to the tiny models."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.errors import InputError, ModelError
from contracts.values import Method
from unlearning import methods
from unlearning.families.clip import ClipModel
from unlearning.keys import keyed_matrix, keys
from unlearning.methods import uce
from unlearning.request import UnlearnInputs
from unlearning.zero_shot import class_embeddings, fill_templates

TARGET, OTHER = 2, 5
OPTIONS = uce.Options()


def told(task: Any, *towers: str, **options: float) -> Method:
    return replace(task.method, name="uce", towers=towers, options=options)


def change_of(gone: Tensor, wanted: Tensor, kept: Tensor, **options: float) -> Tensor:
    owners = torch.zeros(len(gone), dtype=torch.long)
    return uce.rewrite(gone, wanted, owners, kept, uce.Options(**options))[0]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_rewrite_is_the_damped_least_squares_answer() -> None:
    gone, kept, wanted = drawn(4, 9, seed=0), drawn(30, 9, seed=1), drawn(4, 5, seed=2)
    change = change_of(gone, wanted, kept, share=0.0, epsilon=0.02)
    damping = 0.02 * float((kept.T @ kept / 30).diagonal().mean())
    rows = torch.cat([gone / 2, kept / 30**0.5, damping**0.5 * torch.eye(9, dtype=torch.float64)])
    values = torch.cat([wanted / 2, torch.zeros(30 + 9, 5, dtype=torch.float64)])
    torch.testing.assert_close(change.T, torch.linalg.lstsq(rows, values).solution)


def test_keys_apart_from_the_retained_ones_are_led_all_the_way_and_those_not_at_all() -> None:
    gone, kept, wanted = torch.eye(6, dtype=torch.float64)[:2], drawn(9, 6, seed=1), drawn(2, 4, seed=2)
    kept[:, :2] = 0.0
    change = change_of(gone, wanted, kept, epsilon=1e-9)
    torch.testing.assert_close(gone @ change.T, wanted, atol=1e-6, rtol=0)
    assert float((kept @ change.T).abs().max()) < 1e-6


def test_a_concept_hardly_told_from_retained_ones_weighs_more_until_its_share_is_made() -> None:
    kept = drawn(40, 8, seed=1)
    gone = torch.stack([0.3 * drawn(8, seed=3), 5 * drawn(8, seed=4)])
    wanted, owners = drawn(2, 3, seed=2), torch.tensor([7, 9])

    def shares(share: float) -> dict[int, float]:
        found = uce.rewrite(gone, wanted, owners, kept, uce.Options(share=share))
        return {c: uce._made(gone[[i]], wanted[[i]], found[c]) for i, c in enumerate(owners.tolist())}

    light, heavy = shares(0.0), shares(0.9)
    assert light[7] < 0.5 < light[9]
    assert min(heavy.values()) >= 0.9
    assert heavy[7] < 0.999  # and no further than it has to


def test_the_changes_of_concepts_add_up_to_that_of_all() -> None:
    gone, kept, wanted = drawn(6, 9, seed=0), drawn(30, 9, seed=1), drawn(6, 5, seed=2)
    options = uce.Options(share=0.0)
    apart = uce.rewrite(gone, wanted, torch.tensor([0, 0, 1, 1, 1, 2]), kept, options)
    joint = change_of(gone, wanted, kept, share=0.0)
    torch.testing.assert_close(sum(apart.values()), joint)
    # The keys of the others are held where they are, as those of the retained.
    assert float((gone[:2] @ apart[1].T).norm()) < 0.5 * float((gone[2:5] @ apart[1].T).norm())


@pytest.mark.parametrize("items", [["a cat", None], ["a cat"]])
def test_no_hook_is_left_behind_by_what_fails(
    model: ClipModel, items: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise TypeError("in the tower")

    monkeypatch.setattr(model, "text_features", fail)
    with pytest.raises((TypeError, AttributeError)):
        keys(model, "text", items, 4)
    assert not [name for name, module in model.net.named_modules() if module._forward_hooks]


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_outputs_change_by_what_the_rewrite_says(model: ClipModel, task: Any, tower: Any) -> None:
    inputs, method = task.inputs(TARGET), told(task, tower)
    layer = keyed_matrix(model, tower).layer
    gone, _, kept = uce._items(inputs, tower)
    items = [*gone, *kept] if tower == "text" else torch.cat([gone, kept])
    before, pieces = keys(model, tower, items, 1000), keys(model, tower, items, 7)
    torch.testing.assert_close(pieces.inputs, before.inputs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pieces.outputs, before.outputs, atol=1e-5, rtol=1e-4)
    (direction,) = methods.profile(model, inputs, method).directions[inputs.class_ids[TARGET]].values()
    with torch.no_grad():
        model.parameters[layer.weight].add_(direction)
    moved = keys(model, tower, items, 1000).outputs - before.outputs
    change = (direction if layer.transposed else direction.T).double()
    torch.testing.assert_close(moved, before.inputs @ change, atol=1e-3, rtol=1e-3)
    led, left = moved[: len(gone)].norm(dim=1).mean(), moved[len(gone) :].norm(dim=1).mean()
    assert led > 2 * left


def test_a_name_is_led_to_where_names_are_on_average(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET)
    before = class_embeddings(model, inputs.class_names, inputs.templates)
    outcome = methods.unlearn(model, inputs, told(task, "text"))
    after = class_embeddings(model, inputs.class_names, inputs.templates)
    assert outcome.reached_target
    moved = 1 - (before * after).sum(dim=1)
    others = [c for c in range(len(moved)) if c != TARGET]
    assert float(moved[TARGET]) > 5 * float(moved[others].max())
    mean = torch.nn.functional.normalize(before[others].mean(dim=0), dim=0)
    assert float(after[TARGET] @ mean) > float(before[TARGET] @ mean)


def test_only_one_matrix_changes_and_the_text_tower_needs_no_picture(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET, OTHER)
    blind = replace(
        inputs,
        forget_images=np.zeros_like(inputs.forget_images),
        retain_images=np.zeros_like(inputs.retain_images),
    )
    seen, unseen = (methods.profile(model, part, told(task, "text")) for part in (inputs, blind))
    for concept, own in seen.directions.items():
        for layer, direction in own.items():
            assert torch.equal(direction, unseen.directions[concept][layer])
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    outcome = methods.unlearn(model, inputs, told(task, "text"))
    changed = {n for n, v in model.net.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == {edit.layer for edit in outcome.edits}
    (edit,) = outcome.edits
    assert edit.layer.endswith("mlp.c_proj.weight")
    assert edit.concepts == (inputs.class_ids[TARGET], inputs.class_ids[OTHER])


def test_the_whole_rewrite_is_the_smallest_step_unless_told(model: ClipModel, task: Any) -> None:
    weights = {name: value.clone() for name, value in model.net.state_dict().items()}

    def found(target: int, least: float) -> tuple[float, int]:
        model.net.load_state_dict(weights)
        method = replace(told(task, "text", least=least), forget_at=1)
        outcome = methods.unlearn(model, task.inputs(target), method)
        return outcome.edits[0].step_size, len(outcome.trials)

    whole = {target: found(target, 1.0) for target in range(8)}
    enough = [target for target, (step, _) in whole.items() if step == 1.0]
    assert enough
    assert all(whole[target] == (1.0, 1) for target in enough)  # one look is enough
    assert all(step > 1.0 and looks > 1 for t, (step, looks) in whole.items() if t not in enough)
    step, looks = found(enough[0], 0.0)
    assert 0.0 < step < 1.0
    assert looks > 1


def test_both_towers_are_searched(model: ClipModel, task: Any) -> None:
    outcome = methods.unlearn(model, task.inputs(TARGET), told(task, "vision", "text"))
    assert {trial.tower for trial in outcome.trials} == {"vision", "text"}
    assert len(outcome.edits) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [({"share": 1.0}, "share"), ({"epsilon": 0.0}, "epsilon"), ({"least": -1.0}, "least"), ({"w": 1.0}, "w")],
)
def test_bad_options_are_refused_before_any_work(task: Any, options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        methods.check(told(task, "text", **options), n_classes=8)


def test_a_tower_that_overflows_is_refused_by_name(model: ClipModel, task: Any) -> None:
    inputs: UnlearnInputs = task.inputs(TARGET)
    last = model.net.transformer.resblocks[-1]
    with torch.no_grad():
        last.mlp.c_fc.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"mlp\.c_proj\.weight is not finite"):
        methods.profile(model, inputs, told(task, "text"))


def test_a_layer_that_is_zero_has_nothing_to_step_from(model: ClipModel, task: Any) -> None:
    with torch.no_grad():
        model.net.transformer.resblocks[-1].mlp.c_proj.weight.zero_()
    with pytest.raises(ModelError, match=r"c_proj\.weight cannot lead c-00000002 anywhere"):
        methods.profile(model, task.inputs(TARGET), told(task, "text"))


def test_retained_items_that_are_all_the_same_leave_an_alignment(model: ClipModel, task: Any) -> None:
    inputs = task.inputs(TARGET)
    first = inputs.retain_images[:1]
    same = replace(inputs, retain_images=np.repeat(first, len(inputs.retain_images), axis=0))
    (score,) = methods.profile(model, same, told(task, "vision")).scores[inputs.class_ids[TARGET]]
    assert math.isfinite(score.alignment)  # rounding may tell equal images apart
    assert score.importance > 0.0


def test_a_caption_of_retained_items_is_kept_and_a_name_goes_whoever_bears_it(task: Any) -> None:
    inputs = task.inputs(TARGET)
    (name, *_), shared = fill_templates([inputs.class_names[TARGET]], inputs.templates), "a photo"
    inputs = replace(
        inputs,
        forget_captions=(shared, *inputs.forget_captions[1:]),
        retain_captions=(shared, name, *inputs.retain_captions[2:]),
    )
    gone, owners, kept = uce._items(inputs, "text")
    assert name in gone
    assert name not in kept
    assert shared in kept
    assert shared not in gone
    assert not set(gone) & set(kept)
    assert owners.tolist() == [TARGET] * len(gone)


def test_a_caption_of_two_targets_counts_once(task: Any) -> None:
    inputs = task.inputs(TARGET, OTHER)
    both = f"{inputs.class_names[TARGET]} and {inputs.class_names[OTHER]}"
    inputs = replace(inputs, forget_captions=(both,) * len(inputs.forget_captions))
    gone, owners, _ = uce._items(inputs, "text")
    assert gone.count(both) == 1
    assert int(owners[gone.index(both)]) == int(inputs.forget_labels[0])


def test_a_caption_that_does_not_name_its_target_is_not_led_away(task: Any) -> None:
    inputs = task.inputs(TARGET)
    silent, telling = "a drawing of something else", f"A {inputs.class_names[TARGET].upper()}, drawn"
    inputs = replace(inputs, forget_captions=(silent, telling, *inputs.forget_captions[2:]))
    gone, _, kept = uce._items(inputs, "text")
    assert telling in gone
    assert silent not in gone
    assert silent not in kept
