"""SSD, CCUP and RAZOR against their formulas, written out plainly."""

import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from contracts.errors import ModelError
from contracts.values import LayerScore
from unlearning import ClipModel, methods, training, unlearn
from unlearning.attempts import (
    Attempt,
    Judge,
    assign,
    best_attempt,
    restored,
    settle,
    trainable,
    try_each,
    unprofiled,
)
from unlearning.forgetting import Forgetting
from unlearning.gradients import forget_gradient, retain_gradient
from unlearning.inplace import edited
from unlearning.methods import ccup, razor, ssd
from unlearning.similarity_drift import Drift
from unlearning.zero_shot import class_embeddings

TARGET = 3
NAMES = (
    "text_projection",
    "transformer.resblocks.1.mlp.c_fc.weight",
    "transformer.resblocks.1.mlp.c_fc.bias",
)


def state(model: ClipModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def changed(model: ClipModel, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}


# --- SSD


def test_fisher_is_the_mean_of_squares_and_not_the_square_of_the_mean(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    layers = [*NAMES, trainable(model, ("vision",))[0]]
    images, captions = torch.as_tensor(inputs.forget_images[:4]), inputs.forget_captions[:4]
    fisher = ssd.squared_gradients(model, images, captions, layers)

    weights = [model.net.get_parameter(layer).requires_grad_() for layer in layers]
    squares, total = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for i in range(4):
        image = model.image_features(model.preprocess(images[i : i + 1]))[0]
        text = model.text_features(model.tokenize([captions[i]]))[0]
        for j, gradient in enumerate(torch.autograd.grad(image @ text, weights)):
            squares[j] += gradient**2 / 4
            total[j] += gradient / 4
    for layer, expected, mean in zip(layers, squares, total, strict=True):
        torch.testing.assert_close(fisher[layer], expected, rtol=1e-3, atol=1e-8)
        assert not torch.allclose(fisher[layer], mean**2, rtol=1e-1, atol=0.0), "items do not cancel"


def test_dampening_follows_the_paper() -> None:
    weight = torch.tensor([4.0, 4.0, 4.0, 4.0, 4.0])
    forget = torch.tensor([1.0, 8.0, 100.0, 3.0, 0.0])
    retain = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    found = ssd.dampened({"w": weight}, {"w": forget}, {"w": retain}, selection=2.0, dampening=4.0)
    # not selected; 4 * 1/8; 4 * 1/100; selected but 4/3 > 1 must not grow; 0/0 is left alone
    torch.testing.assert_close(found["w"], torch.tensor([4.0, 2.0, 0.16, 4.0, 4.0]))


def test_every_trial_dampens_the_original_weights_once(model: ClipModel, task, monkeypatch) -> None:
    # The SLUG paper's code dampens the dampened model again: the second trial would start lower.
    inputs, before, seen = task.inputs(TARGET), state(model), []
    dampen = ssd.dampened

    def listens(weights, *rest):
        seen.append({name: weight.clone() for name, weight in weights.items()})
        return dampen(weights, *rest)

    monkeypatch.setattr(ssd, "dampened", listens)
    method = replace(task.method, name="ssd", options={"selections": [1.0], "dampenings": [1.0, 0.1]})
    unlearn(model, inputs, method)
    assert len(seen) == 2
    assert all(torch.equal(weights[k], before[k]) for weights in seen for k in weights)


@pytest.mark.parametrize("targets", [(TARGET,), (0, 3, 5)])
def test_ssd_reaches_the_target_or_says_that_it_did_not(model: ClipModel, task, targets: Any) -> None:
    inputs, before = task.inputs(*targets), state(model)
    outcome = unlearn(model, inputs, replace(task.method, name="ssd", options={"items": 8}))
    reached = [t for t in outcome.trials if t.forget_rate <= task.method.forget_target]
    assert outcome.reached_target == bool(reached)
    assert len(outcome.trials) == 24
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    if reached:
        best = max(t.retained_rate for t in reached)
        (size,) = {edit.step_size for edit in outcome.edits}
        assert best in [t.retained_rate for t in reached if t.step_size == size]
    weights, after = trainable(model, task.method.towers), state(model)
    moved = torch.cat([(after[k] - before[k]).flatten() for k in weights]).norm()
    whole = torch.cat([before[k].flatten() for k in weights]).norm()
    assert outcome.edits[0].step_size == pytest.approx(float(moved / whole), rel=1e-3)
    assert all((after[k].abs() <= before[k].abs()).all() for k in weights), "dampening never grows a weight"


def scaled(weights: Mapping[str, Tensor], factor: float) -> tuple[float, dict[str, Tensor]]:
    return factor, {name: factor * weight for name, weight in weights.items()}


def test_settings_are_tried_from_the_original_weights(model: ClipModel, task) -> None:
    before = state(model)
    judge = Judge(model, task.inputs(TARGET), task.method, ["text_projection"])
    (found,) = try_each(model, judge, ["text_projection"], [2.0, 4.0], scaled, lambda *_: None)
    assert not changed(model, before)
    # Features are normalised: a scaled projection is the same model, and of equals the first one counts.
    assert torch.equal(found.weights["text_projection"], 2 * before["text_projection"])
    assert found.step_size == 2.0
    assert [trial.step_size for trial in found.path] == [2.0, 4.0]
    original = judge.original.forget_rate, judge.original.retained_rate
    assert [(trial.forget_rate, trial.retained_rate) for trial in found.path] == [original] * 2


def test_settings_that_break_the_model_leave_nothing(model: ClipModel, task) -> None:
    judge = Judge(model, task.inputs(TARGET), task.method, ["text_projection"])
    broken = [torch.nan, torch.inf]
    assert try_each(model, judge, ["text_projection"], broken, scaled, lambda *_: None) == []
    (found,) = try_each(model, judge, ["text_projection"], [*broken, 2.0], scaled, lambda *_: None)
    assert [trial.step_size for trial in found.path] == [2.0]


@pytest.mark.parametrize("ascending", [True, False])
def test_weights_are_kept_of_the_best_attempt_alone(
    model: ClipModel, task, monkeypatch: pytest.MonkeyPatch, ascending: bool
) -> None:
    judge = Judge(model, task.inputs(TARGET), task.method, ["text_projection"])
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def listening(weights: Mapping[str, Tensor], factor: float) -> tuple[float, dict[str, Tensor]]:
        size, edited = scaled(weights, factor)
        made.extend(map(weakref.ref, edited.values()))
        alive.append(sum(weight() is not None for weight in made))
        return size, edited

    # The better the later, or the earlier.
    kept = [0.1 * rate for rate in range(6)]
    seen = iter(kept if ascending else reversed(kept))
    monkeypatch.setattr(judge, "both", lambda: (Forgetting({TARGET: 0.0}, 0.0, 0.0, 0.0), next(seen)))
    settings = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    (found,) = try_each(model, judge, ["text_projection"], settings, listening, lambda *_: None)
    assert found.step_size == (6.0 if ascending else 1.0)
    assert len(found.path) == 6
    assert alive == [1, 2, 2, 2, 2, 2]
    assert sum(weight() is not None for weight in made) == 1


def holding(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[int]:
    """How many attempts' weights are there when one more is made by a module."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def listening(size: float, weights: Mapping[str, Tensor], *rest: Any) -> Attempt:
        made.append(weakref.ref(next(iter(weights.values()))))
        alive.append(sum(weight() is not None for weight in made))
        return Attempt(size, weights, *rest)

    monkeypatch.setattr(module, "Attempt", listening)
    return alive


@pytest.mark.parametrize("name", ["razor", "gradient-ascent"])
@pytest.mark.parametrize("ascending", [True, False])
def test_rounds_and_learning_rates_keep_the_weights_of_the_best_alone(
    model: ClipModel, task, monkeypatch: pytest.MonkeyPatch, name: str, ascending: bool
) -> None:
    told: dict[str, Any] = {
        "razor": {"expansions": 3},
        "gradient-ascent": {"learning_rates": [1e-5, 2e-5, 3e-5, 4e-5], "steps": 1},
    }
    kept = [0.1 * rate for rate in range(20)]
    seen = iter(kept if ascending else reversed(kept))
    monkeypatch.setattr(Judge, "retained_rate", lambda judge: next(seen))
    monkeypatch.setattr(Judge, "both", lambda judge: (judge.forgetting(), judge.retained_rate()))
    monkeypatch.setattr(Judge, "forgetting", lambda judge: Forgetting({TARGET: 1.0}, 1.0, 0.0, 0.0))
    monkeypatch.setattr(razor, "_search", lambda *_: (0.05, []))
    alive = holding(monkeypatch, razor if name == "razor" else training)
    unlearn(model, task.inputs(TARGET), replace(task.method, name=name, towers=("text",), options=told[name]))
    assert alive == [1, 2, 2, 2]


# --- CCUP


def test_the_basis_spans_the_names_and_the_projection_is_one() -> None:
    embeddings = functional.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    basis = ccup.span(embeddings)
    assert basis.shape == (8, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3))
    projection = ccup.without(torch.eye(8), basis, 1.0, axis=0)
    torch.testing.assert_close(projection @ projection, projection)
    torch.testing.assert_close(projection, projection.T)
    assert torch.linalg.matrix_rank(projection) == 5
    assert (projection @ embeddings.T).abs().max() < 1e-6
    half = ccup.without(torch.eye(8), basis, 0.5, axis=1)
    torch.testing.assert_close(half @ embeddings.T, embeddings.T / 2)
    assert ccup.span(torch.cat([embeddings, embeddings[:1]])).shape == (8, 3), "a repeated name adds nothing"


@pytest.mark.parametrize("targets", [(TARGET,), (0, 3, 5)])
def test_in_the_null_space_no_image_resembles_a_forgotten_name(model: ClipModel, task, targets: Any) -> None:
    inputs, before = task.inputs(*targets), state(model)
    embeddings = class_embeddings(model, inputs.class_names, inputs.templates)
    gone = embeddings[list(targets)]
    with torch.no_grad():
        pixels = model.preprocess(inputs.search_images)
        raw = model.net.encode_image(pixels)
        assert (functional.normalize(raw, dim=1) @ gone.T).abs().max() > 0.1
        method = replace(task.method, name="ccup", search_steps=1)  # strength 1 only
        outcome = unlearn(model, inputs, method)
        projected = model.net.encode_image(pixels)
    assert {edit.step_size for edit in outcome.edits} == {1.0}
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    assert {edit.tower for edit in outcome.edits} == {"vision"}
    # Bias and all: catches a projection of the weight alone.
    assert (projected @ gone.T).abs().max() < 1e-4 * raw.norm(dim=1).max()
    basis = torch.linalg.qr(gone.T).Q
    torch.testing.assert_close(projected, raw - raw @ basis @ basis.T, rtol=1e-3, atol=1e-4)
    assert torch.equal(class_embeddings(model, inputs.class_names, inputs.templates), embeddings)
    assert torch.linalg.matrix_rank(
        torch.cat([state(model)[e.layer] - before[e.layer] for e in outcome.edits][:1]), atol=1e-5
    ) == len(targets)


def test_the_strength_is_the_one_that_keeps_most_and_forgets(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    outcome = unlearn(model, inputs, replace(task.method, name="ccup"))
    assert [t.step_size for t in outcome.trials] == pytest.approx([i / 10 for i in range(1, 11)])
    assert outcome.reached_target
    reached = [t for t in outcome.trials if t.forget_rate <= task.method.forget_target]
    best = max(reached, key=lambda t: t.retained_rate or 0.0)
    assert outcome.edits[0].step_size == best.step_size


def test_a_request_for_the_text_tower_projects_the_text_side(model: ClipModel, task) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    unlearn(model, inputs, replace(task.method, name="ccup", towers=("text",)))
    assert changed(model, before) == {"text_projection"}


def test_ccup_looks_at_no_forget_or_retain_image(model: ClipModel, task) -> None:
    inputs, before, found = task.inputs(TARGET), state(model), []
    noise = torch.randint(0, 255, inputs.forget_images.shape, dtype=torch.uint8).numpy()
    for changes in ({}, {"forget_images": noise, "retain_images": inputs.retain_images[::-1].copy()}):
        model.net.load_state_dict(before)
        unlearn(model, replace(inputs, **changes), replace(task.method, name="ccup"))
        found.append(state(model))
    assert all(torch.equal(found[0][key], found[1][key]) for key in before)


def test_a_tower_without_a_projection_is_refused(model: ClipModel) -> None:
    del model.parameters["text_projection"]
    with pytest.raises(ModelError, match="text tower"):
        ccup.final_projection(model, "text")


# --- RAZOR


def test_the_score_is_importance_times_disagreement() -> None:
    score = LayerScore("w", "text", 1, importance=3.0, alignment=0.75, on_front=False)
    assert razor.value(score, 0.5) == pytest.approx(1.5)
    assert razor.value(score, 0.0) == pytest.approx(3.0)
    assert razor.value(replace(score, alignment=-1.0), 1.0) == pytest.approx(6.0)


def gradients(
    model: ClipModel, inputs: Any, method: Any, layers: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Of the forget and of the retain loss, at the present weights."""
    forget = forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, 1000)
    retain = retain_gradient(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=method.retain_batch,
        micro_batch=1000,
        seed=inputs.seed,
    )
    return forget, retain


def test_the_layers_above_the_threshold_get_the_combined_gradient(model: ClipModel, task) -> None:
    inputs = task.inputs(0, TARGET)
    method = replace(task.method, name="razor", options={"ratio": 2.0})
    profile = methods.profile(model, inputs, method)
    layers = [c.name for c in model.candidates()]
    forget, retain = gradients(model, inputs, method, layers)
    phi = {}
    for layer in layers:
        cosine = functional.cosine_similarity(forget[layer].flatten(), retain[layer].flatten(), dim=0)
        size = forget[layer].norm() / model.parameters[layer].norm()
        phi[layer] = float(size * (1 - cosine) ** 0.5)
    chosen = set()
    for tower, vision in (("vision", True), ("text", False)):
        own = {layer: score for layer, score in phi.items() if layer.startswith("visual.") == vision}
        first = {layer for layer, score in own.items() if score > 0.5 * max(own.values())}
        assert set(profile.directions[tower]) == first
        chosen |= first
    assert set(profile.directions) == {"vision", "text"}
    for layer, direction in {**profile.directions["vision"], **profile.directions["text"]}.items():
        torch.testing.assert_close(direction, 2 * forget[layer] - retain[layer], rtol=1e-3, atol=1e-5)
    for scores in profile.scores.values():
        assert {s.layer for s in scores if s.on_front} == chosen


DRIFTING = (
    "text_projection",
    "transformer.resblocks.1.mlp.c_fc.weight",
    "visual.conv1.weight",
)


def test_similarity_drift_has_no_gradient_at_the_original_and_the_right_one_elsewhere(
    model: ClipModel, task
) -> None:
    # 42 pairs in retain batches of 24 and 18: every cosine counts the same, not every batch.
    inputs, layers = task.inputs(TARGET, seed=5), list(DRIFTING)
    order = torch.randperm(42, generator=torch.Generator().manual_seed(5))

    def cosines() -> list[Tensor]:
        image = model.image_features(model.preprocess(inputs.retain_images))
        text = model.text_features(model.tokenize(inputs.retain_captions))
        return [(image[rows] @ text[rows].T).flatten() for rows in order.split(24)]

    with torch.no_grad():
        original = cosines()
    drifts = [Drift(model, inputs, replace(task.method, micro_batch=size)) for size in (1, 7, 1000)]
    away = {k: 0.1 * torch.randn(model.parameters[k].shape) for k in layers}
    assert all(gradient.abs().max() < 1e-5 for gradient in drifts[1].gradient(layers).values())
    with edited(model.parameters, away):
        weights = [model.parameters[layer].requires_grad_() for layer in layers]
        moved = [now - before for now, before in zip(cosines(), original, strict=True)]
        expected = torch.autograd.grad(torch.cat(moved).square().mean(), weights)
        model.net.requires_grad_(False)
        for drift in drifts:
            found = drift.gradient(layers)
            assert list(found) == layers
            for layer, plain in zip(layers, expected, strict=True):
                assert plain.abs().max() > 1e-4
                close = {"rtol": 1e-3, "atol": 1e-4 * float(plain.abs().max())}
                torch.testing.assert_close(found[layer], plain, **close)
    assert not any(p.requires_grad or p.grad is not None for p in model.net.parameters())


def test_similarity_drift_that_is_not_finite_is_refused_by_name(model: ClipModel, task) -> None:
    drift = Drift(model, task.inputs(TARGET), task.method)
    broken = {"text_projection": torch.full_like(model.parameters["text_projection"], torch.nan)}
    with (
        edited(model.parameters, broken),
        pytest.raises(ModelError, match=r"gradient of text_projection is not finite"),
    ):
        drift.gradient(["text_projection"])


@pytest.mark.parametrize("targets", [(TARGET,), (0, 3, 5)])
def test_razor_forgets_within_its_layers(model: ClipModel, task, targets: Any) -> None:
    inputs, before = task.inputs(*targets), state(model)
    # The last round of the request for three has to reach the target, for which six trials are one too few.
    method = replace(task.method, name="razor", search_steps=7)
    first = methods.profile(model, inputs, method)
    outcome = methods.edit(model, inputs, method, first)
    assert outcome.reached_target
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    rounds, (tower,) = len(outcome.curve) - 1, {edit.tower for edit in outcome.edits}
    assert set(first.directions[tower]) <= changed(model, before)
    assert len(changed(model, before)) <= len(first.directions[tower]) + rounds - 1
    assert {t.tower for t in outcome.trials} == {"vision", "text"}
    assert {t.tower for t in outcome.curve} == {tower}
    assert 1 <= rounds <= 7
    assert outcome.curve[-1].step_size == outcome.edits[0].step_size


def test_an_edit_records_the_steps_of_its_own_layer(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    layers = ("text_projection", "transformer.resblocks.1.mlp.c_fc.weight")
    judge = Judge(model, inputs, task.method, layers)
    weights = {layer: 1.1 * model.parameters[layer].detach() for layer in layers}
    seen, path = Forgetting({TARGET: 0.0}, 0.0, 0.0, 0.0), (judge.original,)
    found = Attempt(0.5, weights, seen, True, 1.0, path, {layers[1]: 0.2})
    outcome = settle(model, inputs, judge, [found], unprofiled(inputs))
    assert {edit.layer: edit.step_size for edit in outcome.edits} == {layers[0]: 0.5, layers[1]: 0.2}


def test_razor_refuses_what_breaks_the_model_at_every_step(model: ClipModel, task, monkeypatch) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    method = replace(task.method, name="razor", search_steps=3)
    profile = methods.profile(model, inputs, method)
    measure = Judge.both

    def broken_in(tower: str) -> None:
        def both(judge: Judge) -> Any:
            return None if tower in (judge.original.tower, "both") else measure(judge)

        monkeypatch.setattr(Judge, "both", both)

    broken_in("both")
    with pytest.raises(ModelError, match="every attempt breaks the model"):
        methods.edit(model, inputs, method, profile)
    assert not changed(model, before)
    broken_in("vision")
    assert {edit.tower for edit in methods.edit(model, inputs, method, profile).edits} == {"text"}


class Scripted(Judge):
    """Measures what a script says of the present text_projection, a multiple of the original."""

    def __init__(self, model: ClipModel, reached_from: float, stable_to: float) -> None:
        self._model, self._reached_from, self._stable_to = model, reached_from, stable_to
        self._start = model.parameters["text_projection"].detach().clone()

    def _step(self) -> float:
        weight = self._model.parameters["text_projection"].detach()
        return float((weight / self._start).median()) - 1.0

    def forgetting(self) -> Forgetting:
        rate = float(self._step() < self._reached_from)
        return Forgetting({0: rate}, rate, 0.0, rate)

    def reached(self, seen: Forgetting) -> bool:
        return seen.worst == 0.0

    def both(self) -> tuple[Forgetting, float]:
        return self.forgetting(), float(self._step() <= self._stable_to)


@pytest.mark.parametrize(
    ("reached_from", "stable_to", "floor", "expected"),
    [
        (0.3, 9.0, 0.9, 0.3),  # the smallest that reaches the target
        (0.5, 0.3, 0.9, 0.3),  # not stable there: the largest stable step
        (0.5, 0.3, 0.0, 0.5),  # the last round asks for the target alone
        (0.5, -1.0, 0.9, 0.0),  # no step is stable: none is taken
    ],
)
def test_a_round_steps_as_far_as_the_target_asks_and_stability_allows(
    model: ClipModel, reached_from: float, stable_to: float, floor: float, expected: float
) -> None:
    with restored(model.parameters, ["text_projection"]) as originals:
        updates = {"text_projection": originals["text_projection"].clone()}
        assign(model.parameters, originals)
        judge = Scripted(model, reached_from, stable_to)
        found = razor._search(model, judge, updates, floor, 14)
    assert found is not None
    step, tried = found
    assert step == pytest.approx(expected, rel=0.01)
    assert len(tried) == 14 or expected == 0.0


def published(
    model: ClipModel, inputs: Any, method: Any, weights: dict[str, Tensor], edited_so_far: list[str]
) -> tuple[list[str], dict[str, Tensor]]:
    """The text layers that one expansion updates at the given weights, and their updates, written out."""

    def cosines() -> Tensor:
        image = model.image_features(model.preprocess(inputs.retain_images))
        return image @ model.text_features(model.tokenize(inputs.retain_captions)).T

    with torch.no_grad():
        original = cosines()
    layers = [c.name for c in model.candidates() if c.tower == "text"]
    with restored(model.parameters, weights):
        assign(model.parameters, weights)
        present = [model.parameters[layer].requires_grad_() for layer in layers]
        drift = torch.autograd.grad((cosines() - original).square().mean(), present)
        model.net.requires_grad_(False)
        forget, retain = gradients(model, inputs, method, layers)
        cosine = {
            k: functional.cosine_similarity(forget[k].flatten(), retain[k].flatten(), 0) for k in layers
        }
        phi = {k: forget[k].norm() / model.parameters[k].norm() * (1 - cosine[k]) ** 0.5 for k in layers}
    best = max((k for k in layers if k not in edited_so_far), key=lambda k: float(phi[k]))
    moved = dict(zip(layers, drift, strict=True))
    chosen = [*edited_so_far, best]
    return chosen, {k: 2 * forget[k] - retain[k] - 30 * moved[k] for k in chosen}


def test_an_expansion_updates_the_layers_so_far_and_the_best_new_one_at_the_present_weights(
    model: ClipModel, task
) -> None:
    inputs = task.inputs(TARGET)
    method = replace(task.method, name="razor", retain_batch=1000, options={"ratio": 2.0, "drift": 30.0})
    drift = Drift(model, inputs, method)
    names = [c.name for c in model.candidates() if c.tower == "text"]
    so_far = {"text_projection": torch.zeros_like(model.parameters["text_projection"])}
    away = {k: 1.3 * model.parameters[k].detach().roll(1, 0) for k in so_far}
    chosen, updates = published(model, inputs, method, away, list(so_far))
    with restored(model.parameters, away):
        assign(model.parameters, away)
        found = razor._expanded(model, inputs, method, names, so_far, drift, lambda *_: None)
    assert list(found) == chosen
    for layer, update in updates.items():
        close = {"rtol": 1e-3, "atol": 1e-4 * float(update.abs().max())}
        torch.testing.assert_close(found[layer], update, **close)


@pytest.mark.parametrize(("expansions", "reached_in", "rounds"), [(2, 9, 3), (2, 2, 2), (2, 1, 1), (0, 9, 1)])
def test_layers_are_added_one_by_one_while_the_target_is_missed(
    model: ClipModel, task, monkeypatch, expansions: int, reached_in: int, rounds: int
) -> None:
    inputs, before, looks, floors = task.inputs(TARGET), state(model), [], []
    options = {"ratio": 2.0, "drift": 30.0, "expansions": expansions}
    method = replace(task.method, name="razor", retain_batch=1000, options=options)

    def reached(judge: Judge, seen: Forgetting) -> bool:
        looks.append(seen)
        return len(looks) == reached_in

    def step(*arguments: Any) -> tuple[float, list[Any]]:
        floors.append(arguments[3])
        return 0.05, []

    monkeypatch.setattr(Judge, "reached", reached)
    monkeypatch.setattr(razor, "_search", step)
    first = methods.profile(model, inputs, method).directions["text"]
    judge, drift = Judge(model, inputs, method, tuple(first)), Drift(model, inputs, method)
    attempts: list[Attempt] = []

    def listening(*parts: Any) -> Attempt:
        attempts.append(Attempt(*parts))
        return attempts[-1]

    monkeypatch.setattr(razor, "Attempt", listening)
    best, _ = razor._rounds(model, inputs, method, judge, first, drift, lambda *_: None)

    assert len(attempts) == rounds
    assert best == [best_attempt(attempts)]
    assert [len(attempt.path) for attempt in attempts] == list(range(1, rounds + 1))
    # After the last expansion the target is asked for, whatever it costs.
    stable = 0.95 * judge.original.retained_rate
    assert floors == [0.0 if done == expansions else stable for done in range(rounds)]
    assert not changed(model, before)
    weights, updates, steps = {k: before[k] for k in first}, dict(first), dict.fromkeys(first, 0.0)
    for done, attempt in enumerate(attempts, start=1):
        assert attempt.step_size == pytest.approx(0.05 * done)
        assert set(attempt.weights) == set(updates)
        # A layer's steps are those taken since it was added.
        steps = {k: steps.get(k, 0.0) + 0.05 for k in updates}
        assert attempt.own_steps == pytest.approx(steps)
        for layer, update in updates.items():
            weight = weights.get(layer, before[layer])
            expected = weight + 0.05 * weight.norm() / update.norm() * update
            torch.testing.assert_close(attempt.weights[layer], expected, rtol=1e-4, atol=1e-5)
        weights = dict(attempt.weights)
        _, updates = published(model, inputs, method, weights, list(updates))
