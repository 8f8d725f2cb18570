"""Baselines by training: stopped at the right step, tuned on the search split, exact in what they touch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import InputError, ModelError
from contracts.values import Method
from unlearning import ClipModel, UnlearnInputs, methods, unlearn
from unlearning.attempts import Attempt, Judge, best_attempt, settle, trainable, unprofiled
from unlearning.forgetting import Forgetting
from unlearning.methods.salun import relabelling_loss, salient_half
from unlearning.request import Outcome
from unlearning.training_batches import Batches

TARGET = 3
FORGETTING = ("gradient-ascent", "ascent-finetuning", "salun")
ALL = ("fine-tuning", *FORGETTING, "ssd", "ccup", "razor")


def state(model: ClipModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def changed(model: ClipModel, before: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are not bit-equal."""
    return {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}


def told(task: Any, name: str, **options: Any) -> Method:
    return replace(task.method, name=name, options=options)


def rates(model: ClipModel, inputs: UnlearnInputs, method: Method) -> tuple[float, float]:
    """FA@forget_at over the targets and TA@1 over the rest on the search split, the plain way."""
    with torch.no_grad():
        image = model.image_features(model.preprocess(inputs.search_images))
        texts = [[t.format(name) for name in inputs.class_names] for t in inputs.templates]
        classes = torch.stack([model.text_features(model.tokenize(own)) for own in texts]).mean(0)
    labels = torch.as_tensor(inputs.search_labels)
    top = (image @ functional.normalize(classes, dim=1).T).argsort(dim=1, descending=True)
    rank = (top == labels[:, None]).int().argmax(dim=1) + 1
    forget = torch.isin(labels, torch.tensor(inputs.targets))
    known, first = (rank <= method.forget_at).double(), (rank == 1).double()
    return float(known[forget].mean()), float(first[~forget].mean())


@pytest.mark.parametrize("name", FORGETTING)
def test_it_forgets_and_stops_at_the_first_step_that_does(model: ClipModel, task, name: str) -> None:
    # Catches a stop check that looks every few steps, or once an epoch.
    inputs, before = task.inputs(TARGET), state(model)
    method = told(task, name, learning_rates=[1e-3], steps=25)
    assert rates(model, inputs, method)[0] == 1.0, "the model should know the concept before"

    outcome = unlearn(model, inputs, method)

    assert outcome.reached_target
    assert [t.step_size for t in outcome.trials] == pytest.approx(
        [1e-3 * step for step in range(1, len(outcome.trials) + 1)]
    )
    assert [t.forget_rate <= method.forget_target for t in outcome.trials] == [
        *[False] * (len(outcome.trials) - 1),
        True,
    ]
    assert rates(model, inputs, method) == (0.0, outcome.trials[-1].retained_rate)
    assert {edit.step_size for edit in outcome.edits} == {outcome.trials[-1].step_size}
    assert {edit.concepts for edit in outcome.edits} == {(inputs.class_ids[TARGET],)}
    for edit in outcome.edits:
        weight = model.parameters[edit.layer].detach()
        # A bias that was zero is compared with the weight beside it.
        known = before[edit.layer].norm() or before[f"{edit.layer.removesuffix('bias')}weight"].norm()
        change = (weight - before[edit.layer]).norm() / known
        assert edit.relative_change == pytest.approx(float(change), rel=1e-3)


def test_a_change_of_zeros_is_compared_with_the_layer_and_of_a_zero_layer_is_all_of_it(
    model: ClipModel, task
) -> None:
    weight, bias = (f"transformer.resblocks.1.mlp.c_fc.{kind}" for kind in ("weight", "bias"))
    for zeros, expected in (((bias,), 0.02), ((bias, weight), 1.0)):
        for name in zeros:
            model.parameters[name].data.zero_()
        judge = Judge(model, task.inputs(TARGET), task.method, [weight])
        length = float(model.parameters[weight].detach().norm()) or 1.0
        moved = torch.full_like(model.parameters[bias], 0.02 * length / len(model.parameters[bias]) ** 0.5)
        seen = Forgetting({TARGET: 0.0}, 0.0, 0.0, 0.0)
        found = Attempt(1.0, {bias: moved}, seen, True, 1.0, (judge.original,))
        (edit,) = settle(model, task.inputs(TARGET), judge, [found], unprofiled(task.inputs(TARGET))).edits
        assert edit.relative_change == pytest.approx(expected, rel=1e-4)


def test_the_run_would_have_known_the_concept_one_step_earlier(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    before = state(model)
    steps = len(unlearn(model, inputs, told(task, "gradient-ascent", learning_rates=[1e-3])).trials)
    assert steps > 1 or "ModifiedResNet" in type(model.net.visual).__name__
    model.net.load_state_dict(before)
    short = told(task, "gradient-ascent", learning_rates=[1e-3], steps=max(steps - 1, 1))
    outcome = unlearn(model, inputs, short)
    assert outcome.reached_target == (steps == 1)


def test_the_learning_rate_that_keeps_most_wins(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    method = told(task, "gradient-ascent", learning_rates=[3e-2, 1e-3, 1e-9], steps=25)
    outcome = unlearn(model, inputs, method)
    measured = [t for t in outcome.trials if t.retained_rate is not None]
    assert len(measured) == 3
    reached = [t for t in measured if t.forget_rate <= method.forget_target]
    assert len(reached) == 2, "the smallest rate keeps most and forgets nothing: it must not win"
    best = max(t.retained_rate for t in reached)
    assert rates(model, inputs, method) == (0.0, best)
    assert best > min(t.retained_rate for t in reached), "no choice, no test"


def attempt(*, fa: float, ta: float) -> Attempt:
    return Attempt(1.0, {}, Forgetting({0: fa}, fa, 0.0, fa), fa == 0.0, ta, ())


def test_of_the_attempts_the_target_comes_first_then_what_is_kept() -> None:
    kept, poor = attempt(fa=0.0, ta=0.8), attempt(fa=0.0, ta=0.3)
    missed, far = attempt(fa=0.1, ta=0.9), attempt(fa=0.5, ta=1.0)
    assert best_attempt([poor, far, kept, missed]) is kept
    assert best_attempt([far, missed]) is missed
    with pytest.raises(ModelError, match="every attempt"):
        best_attempt([])


def test_fine_tuning_alone_does_not_forget(model: ClipModel, task) -> None:
    # The control of the others: the same steps without a forget loss.
    inputs = task.inputs(TARGET)
    before = rates(model, inputs, task.method)
    outcome = unlearn(model, inputs, told(task, "fine-tuning", learning_rates=[3e-5], steps=8))
    assert not outcome.reached_target
    assert len(outcome.trials) == 8
    assert {t.forget_rate for t in outcome.trials} == {1.0}
    after = rates(model, inputs, task.method)
    assert after[0] == 1.0
    assert after[1] == pytest.approx(before[1], abs=0.1)


def test_fine_tuning_never_reads_the_forget_set(model: ClipModel, task, monkeypatch) -> None:
    def refuses(self: Batches) -> None:
        raise AssertionError("the forget set was read")

    monkeypatch.setattr(Batches, "forget", refuses)
    unlearn(model, task.inputs(TARGET), told(task, "fine-tuning", learning_rates=[1e-5], steps=1))
    with pytest.raises(AssertionError, match="was read"):
        unlearn(model, task.inputs(TARGET), told(task, "gradient-ascent", steps=1))


def test_a_target_out_of_reach_is_said_and_the_closest_step_kept(model: ClipModel, task) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    outcome = unlearn(model, inputs, told(task, "gradient-ascent", learning_rates=[1e-8], steps=3))
    assert not outcome.reached_target
    assert outcome.curve[0].forget_rate == 1.0
    assert changed(model, before), "the closest attempt is made all the same"


def test_a_run_counts_as_it_stood_where_it_was_closest(model: ClipModel, task, monkeypatch) -> None:
    # Catches the last step's weights, or its retained rate, in place of the closest one's.
    inputs, before = task.inputs(TARGET), state(model)

    def run(*rates_seen: float) -> Outcome:
        script = iter(rates_seen)

        def scripted(*_: Any, **__: Any) -> Forgetting:
            rate = next(script)
            return Forgetting({TARGET: rate}, rate, 0.0, rate)

        monkeypatch.setattr("unlearning.search_split.SplitView.forgetting", scripted)
        options = {"learning_rates": [3e-4], "steps": len(rates_seen)}
        return unlearn(model, inputs, told(task, "gradient-ascent", **options))

    run(0.9, 0.2)
    two_steps, after_two = state(model), rates(model, inputs, task.method)
    model.net.load_state_dict(before)
    outcome = run(0.9, 0.2, 0.6, 0.4)
    assert rates(model, inputs, task.method) == after_two
    assert [t.forget_rate for t in outcome.trials] == [0.9, 0.2, 0.6, 0.4]
    assert [t.retained_rate for t in outcome.trials] == [None, after_two[1], None, None]
    assert [t.forget_rate for t in outcome.curve] == [1.0, 0.9, 0.2]
    assert all(torch.equal(tensor, two_steps[name]) for name, tensor in state(model).items())


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("name", ["ascent-finetuning", "salun"])
def test_only_the_trained_tensors_of_the_tower_differ(model: ClipModel, task, tower: Any, name: str) -> None:
    # BatchNorm statistics, embeddings and the temperature among what must not.
    before = state(model)
    method = replace(told(task, name, learning_rates=[1e-4], steps=2), towers=(tower,))
    outcome = unlearn(model, task.inputs(TARGET), method)
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    assert changed(model, before) <= set(trainable(model, (tower,)))
    assert {edit.tower for edit in outcome.edits} == {tower}
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())
    assert not model.net.training


def test_candidates_and_the_biases_beside_them_are_trained(model: ClipModel) -> None:
    names = set(trainable(model, ("vision", "text")))
    candidates = {c.name for c in model.candidates()}
    assert candidates < names
    assert all("bias" in name for name in names - candidates)
    assert "transformer.resblocks.0.attn.in_proj_bias" in names
    assert not any("embedding" in name or "logit" in name for name in names)
    assert not any(name.startswith("visual.") for name in trainable(model, ("text",)))


@pytest.mark.parametrize("name", ["ascent-finetuning", "salun"])
def test_the_same_seed_gives_the_same_bits(model: ClipModel, task, name: str) -> None:
    method = told(task, name, learning_rates=[1e-4], steps=3, batch=4)
    before, found = state(model), []
    for seed in (0, 0, 1):
        model.net.load_state_dict(before)
        unlearn(model, task.inputs(TARGET, seed=seed), method)
        found.append(state(model))
    assert all(torch.equal(found[0][key], found[1][key]) for key in before)
    assert any(not torch.equal(found[0][key], found[2][key]) for key in before), "the seed does nothing"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("after", [0, 2])
def test_an_exception_leaves_every_bit_as_it_was(
    model: ClipModel, task, monkeypatch, name: str, after: int
) -> None:
    before, calls = state(model), []

    def breaking(measure: Callable[[Judge], Any]) -> Callable[[Judge], Any]:
        def breaks(judge: Judge) -> Any:
            calls.append(bool(changed(model, before)))
            if len(calls) > after:
                raise RuntimeError("somebody pulled the plug")
            return measure(judge)

        return breaks

    monkeypatch.setattr(Judge, "forgetting", breaking(Judge.forgetting))
    monkeypatch.setattr(Judge, "both", breaking(Judge.both))
    with pytest.raises(RuntimeError, match="plug"):
        unlearn(model, task.inputs(TARGET), told(task, name))
    assert any(calls) or name == "ssd", "the plug should be pulled while weights are changed"
    assert not changed(model, before)
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())


@pytest.mark.parametrize("name", ALL)
def test_a_profile_of_other_concepts_is_refused(model: ClipModel, task, name: str) -> None:
    method = told(task, name)
    profile = methods.profile(model, task.inputs(1), method)
    with pytest.raises(InputError, match="other concepts"):
        methods.edit(model, task.inputs(2), method, profile)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fine-tuning", {"learning_rates": []}, "learning_rates"),
        ("fine-tuning", {"learning_rates": [1e-3, -1.0]}, "learning_rates"),
        ("gradient-ascent", {"steps": 0}, "steps"),
        ("ascent-finetuning", {"batch": 1}, "batch"),
        ("ascent-finetuning", {"weight_decay": -0.1}, "weight_decay"),
        ("salun", {"objective": "shuffle"}, "objective"),
        ("salun", {"epochs": 10}, "epochs"),
        ("ssd", {"selections": [0.0]}, "selections"),
        ("ssd", {"items": 0}, "items"),
        ("ccup", {"strength": 1.0}, "strength"),
        ("razor", {"alpha": 2.0}, "alpha"),
        ("razor", {"ratio": -1.0}, "ratio"),
    ],
)
def test_options_that_cannot_work_are_refused(
    make_model: Callable[..., ClipModel], task, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        unlearn(make_model("vit"), task.inputs(TARGET), told(task, name, **options))


def test_a_learning_rate_that_breaks_the_model_is_no_success(model: ClipModel, task) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    with pytest.raises(ModelError, match="every attempt"):
        unlearn(model, inputs, told(task, "gradient-ascent", learning_rates=[1e30], steps=2))
    assert not changed(model, before)
    outcome = unlearn(model, inputs, told(task, "gradient-ascent", learning_rates=[1e30, 1e-3], steps=25))
    assert outcome.edits[0].step_size < 1.0


def test_the_curve_runs_from_the_original_to_what_was_chosen(model: ClipModel, task) -> None:
    inputs = task.inputs(0, TARGET)
    before = rates(model, inputs, task.method)
    outcome = unlearn(model, inputs, told(task, "ascent-finetuning", learning_rates=[1e-3], steps=4))
    assert (outcome.curve[0].forget_rate, outcome.curve[0].retained_rate) == before
    assert rates(model, inputs, task.method) == (
        outcome.curve[-1].forget_rate,
        outcome.curve[-1].retained_rate,
    )
    assert {point.concept for point in outcome.curve} == {"*"}
    assert {edit.concepts for edit in outcome.edits} == {("c-00000000", "c-00000003")}


def test_salun_changes_the_salient_half_and_nothing_else(model: ClipModel, task) -> None:
    # With weight decay on: decay must not leak through the mask.
    from unlearning.gradients import forget_gradient

    inputs, before = task.inputs(TARGET), state(model)
    names = trainable(model, task.method.towers)
    gradient = forget_gradient(model, inputs.forget_images, inputs.forget_captions, names, 16)
    masks = salient_half(gradient)
    n = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == n // 2
    inside = torch.cat([g.abs()[masks[k]] for k, g in gradient.items()])
    outside = torch.cat([g.abs()[~masks[k]] for k, g in gradient.items()])
    assert inside.min() >= outside.max()

    unlearn(model, inputs, told(task, "salun", learning_rates=[1e-3], steps=2, weight_decay=1.0))
    after = state(model)
    assert all(torch.equal(after[k][~mask], before[k][~mask]) for k, mask in masks.items())
    moved = sum(int((after[k] != before[k]).sum()) for k in masks)
    assert moved > 0.9 * (n // 2)


def test_equal_magnitudes_do_not_spoil_the_half() -> None:
    masks = salient_half({"a": torch.zeros(3, 3), "b": torch.ones(4)})
    assert [int(mask.sum()) for mask in masks.values()] == [2, 4]


def test_salun_relabels_and_its_namesake_ascends(model: ClipModel, task) -> None:
    inputs, before, found = task.inputs(TARGET), state(model), []
    for objective in ("relabel", "ascent"):
        model.net.load_state_dict(before)
        unlearn(model, inputs, told(task, "salun", objective=objective, learning_rates=[1e-4], steps=2))
        found.append(state(model)["text_projection"])
    assert not torch.equal(*found)


def test_a_relabelled_image_is_asked_for_a_caption_of_somebody_else_and_not_for_its_own() -> None:
    seeded = torch.Generator().manual_seed(0)
    image, own = (functional.normalize(torch.randn(2, 5, generator=seeded), dim=1) for _ in range(2))
    others = functional.normalize(torch.randn(3, 5, generator=seeded), dim=1)
    labels = torch.randint(3, (2,), generator=torch.Generator().manual_seed(7))
    logits = 10 * image @ torch.cat([others, own]).T
    expected = torch.stack(
        [logits[i].exp().sum().log() - logits[i, label] for i, label in enumerate(labels)]
    ).mean()
    leaf = own.clone().requires_grad_()
    loss = relabelling_loss(image, leaf, others, torch.tensor(10.0), torch.Generator().manual_seed(7))
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert ((gradient * image).sum(dim=1) > 0).all(), "descending it must part an image from its caption"
