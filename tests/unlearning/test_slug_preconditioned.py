"""The preconditioned step: its optimum in closed form, its limits, and what it keeps on tiny models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.errors import InputError, ModelError
from tests.unlearning.conftest import items
from unlearning import ClipModel, UnlearnInputs, methods, unlearn
from unlearning.families.clip import tower_of
from unlearning.gradients import forget_gradient
from unlearning.inplace import edited
from unlearning.layer_scores import score_layers
from unlearning.layer_steps import LayerStep
from unlearning.methods.slug_preconditioned import Options
from unlearning.moment_sums import MatrixForm, Moments
from unlearning.moments import retain_gradient_and_sums
from unlearning.moments_solve import Preconditioner
from unlearning.request import JOINT, Profile
from unlearning.search_split import SearchSplit
from unlearning.stepper import Stepper

TARGET = 3
PLAIN = MatrixForm(parts=1, stored_by_input=False)


def preconditioned(task, **options):
    return replace(task.method, name="slug-preconditioned", options=options)


def moment(rows: int, width: int, seed: int = 0) -> Tensor:
    """(1, width, width) second moment of random rows of very unequal energy by coordinate."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rows, width, generator=draw) * torch.logspace(0, -2, width)
    return (a.T @ a / rows)[None]


def gradient(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def damped(moment: Tensor, epsilon: float) -> np.ndarray:
    c = moment[0].double().numpy()
    return c + epsilon * np.trace(c) / len(c) * np.eye(len(c))


@pytest.mark.parametrize("output_epsilon", [None, 0.3])
def test_the_direction_disturbs_least_for_its_gain(output_epsilon: float | None) -> None:
    # minimise tr(G D C D^T) subject to <g, D> = gain, by the linear system of its KKT conditions.
    inputs, outputs, g = moment(40, 5), moment(30, 4, seed=1), gradient(4, 5)
    solver = Preconditioner("w", Moments(PLAIN, inputs, outputs, 40), 0.05, output_epsilon)
    d = solver.direction(g).double().numpy()
    c = damped(inputs, 0.05)
    o = np.eye(4) if output_epsilon is None else damped(outputs, output_epsilon)
    gain = float((g.double().numpy() * d).sum())
    kkt = np.block(
        [[2 * np.kron(o, c), -g.numpy().reshape(-1, 1)], [g.numpy().reshape(1, -1), np.zeros((1, 1))]]
    )
    best = np.linalg.solve(kkt, np.append(np.zeros(20), gain))[:20].reshape(4, 5)
    np.testing.assert_allclose(d, best, rtol=1e-5, atol=1e-7)
    raw = g.double().numpy() * gain / float((g.double() ** 2).sum())
    assert np.trace(o @ d @ c @ d.T) < 0.5 * np.trace(o @ raw @ c @ raw.T), "the raw gradient is no optimum"


def test_a_toy_with_free_directions_is_edited_along_them() -> None:
    # Retained inputs fill 3 of 6 coordinates; what is to be forgotten needs all 6.
    draw = torch.Generator().manual_seed(1)
    retained = torch.randn(50, 6, generator=draw) * torch.tensor([1.0, 1, 1, 0, 0, 0])
    forget = torch.randn(4, 6, generator=draw)
    g = torch.randn(2, 4, generator=draw) @ forget
    moments = Moments(PLAIN, (retained.T @ retained / 50)[None], None, 50)
    d = Preconditioner("w", moments, 1e-3, None).direction(g)
    d = d * float((g * g).sum() / (g * d).sum())  # equal first-order gain
    assert float((retained @ d.T).norm()) < 0.02 * float((retained @ g.T).norm())


@pytest.mark.parametrize(
    ("parts", "by_input", "shape"), [(1, False, (4, 6)), (1, True, (6, 4)), (2, False, (4, 3, 2, 1))]
)
def test_large_epsilon_gives_the_gradient_itself(parts: int, by_input: bool, shape: tuple[int, ...]) -> None:
    inputs = torch.cat([moment(30, 6, seed) for seed in range(parts)])
    outputs = torch.cat([moment(30, 4 // parts, seed) for seed in range(parts)])
    moments, g = Moments(MatrixForm(parts, by_input), inputs, outputs, 30), gradient(*shape)
    far = Preconditioner("w", moments, 1e9, 1e9).direction(g)
    near = Preconditioner("w", moments, 1e-2, None).direction(g)
    torch.testing.assert_close(far, g, rtol=1e-6, atol=1e-7)
    assert far.is_contiguous()
    assert near.shape == g.shape
    assert float(torch.cosine_similarity(near.flatten(), g.flatten(), dim=0)) < 0.99


def test_the_gain_is_that_of_an_explicit_inverse() -> None:
    inputs, g = moment(40, 5), gradient(4, 5)
    wanted = np.trace(g.double().numpy() @ np.linalg.inv(damped(inputs, 0.1)) @ g.double().numpy().T)
    assert Preconditioner("w", Moments(PLAIN, inputs, None, 40), 0.1, None).gain(g) == pytest.approx(wanted)


def test_degenerate_moments() -> None:
    g = gradient(4, 5)
    rank_one = Preconditioner("w", Moments(PLAIN, moment(1, 5), None, 1), 1e-3, None)
    assert bool(torch.isfinite(rank_one.direction(g)).all())
    assert not torch.any(rank_one.direction(torch.zeros(4, 5)))
    nothing = Preconditioner("w", Moments(PLAIN, torch.zeros(1, 5, 5), None, 0), 1e-3, None)
    assert torch.equal(nothing.direction(g), g), "what the retain set never uses is free"
    assert nothing.gain(g) == math.inf
    indefinite = moment(1, 5) - 0.1 * torch.eye(5)
    with pytest.raises(ModelError, match="w damped by 1e-12 is not positive definite"):
        Preconditioner("w", Moments(PLAIN, indefinite, None, 1), 1e-12, None)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epsilon": 0}, "epsilon must be above 0, got 0"),
        ({"epsilon": math.nan}, "epsilon must be finite and above 0, got nan"),
        ({"output_epsilon": -1.0}, "output_epsilon must be above 0, got -1.0"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"widest": 0}, "widest must be at least 1, got 0"),
        ({"choose": "best"}, "choose"),
        ({"eps": 1.0}, "eps"),
    ],
)
def test_bad_options_are_refused_before_any_work(task, options, said: str) -> None:
    with pytest.raises(InputError, match=said):
        methods.check(preconditioned(task, **options), n_classes=8)


def gradients_and_moments(model: ClipModel, inputs: UnlearnInputs, method):
    layers = [c.name for c in model.candidates() if len(c.shape) > 1]
    forget = forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, 1000)
    retain, sums = retain_gradient_and_sums(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers,
        retain_batch=method.retain_batch,
        micro_batch=1000,
        seed=inputs.seed,
    )
    return forget, retain, {layer: own.mean() for layer, own in sums.items()}


def test_the_projection_and_the_best_predicted_layers_of_each_tower_are_searched(
    model: ClipModel, task
) -> None:
    inputs, method = task.inputs(TARGET), preconditioned(task, layers=3, epsilon=0.1)
    forget, _, moments = gradients_and_moments(model, inputs, method)
    gains = {}
    for layer, own in moments.items():
        (g,) = own.form.as_matrix(forget[layer]).double().numpy()
        gains[layer] = np.trace(g @ np.linalg.inv(damped(own.inputs, 0.1)) @ g.T)
    made_by = {"visual.proj", "visual.attnpool.c_proj.weight", "text_projection"} & set(gains)
    wanted = set(made_by)
    for tower in ("vision", "text"):
        others = [layer for layer in gains if tower_of(layer) == tower and layer not in made_by]
        wanted |= set(sorted(others, key=lambda layer: -gains[layer])[:2])

    profile = methods.profile(model, inputs, method)

    concept = inputs.class_ids[TARGET]
    assert set(profile.directions[concept]) == wanted
    assert {s.layer for s in profile.scores[concept] if s.on_front} == wanted
    assert {s.layer for s in profile.scores[concept]} == set(gains)
    one = methods.profile(model, inputs, preconditioned(task, layers=1)).directions[concept]
    assert set(one) == made_by


def test_a_named_layer_is_the_only_one_and_gets_the_same_direction(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    concept, layer = inputs.class_ids[TARGET], "transformer.resblocks.0.mlp.c_fc.weight"
    all_of_them = methods.profile(model, inputs, preconditioned(task, layers=1000)).directions[concept]
    (alone,) = methods.profile(model, inputs, preconditioned(task, layer=layer)).directions.values()
    assert list(alone) == [layer]
    torch.testing.assert_close(alone[layer], all_of_them[layer], rtol=1e-3, atol=1e-5)
    for told, match in (
        ({"layer": "transformer.resblocks.0.ln_1.weight"}, "no matrix of the vision or text tower"),
        ({"layer": "c_fc"}, "'c_fc' is no matrix"),
        ({"layer": layer, "widest": 4}, "more inputs than `widest` allows, 4"),
        ({"widest": 4}, "every matrix of the vision or text tower has more inputs than `widest` allows, 4"),
    ):
        with pytest.raises(InputError, match=match):
            methods.profile(model, inputs, preconditioned(task, **told))


def test_the_pareto_choice_is_slugs_front_of_matrices(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    method = preconditioned(task, choose="pareto", widest=10**6)
    forget, retain, moments = gradients_and_moments(model, inputs, method)
    candidates = [c for c in model.candidates() if c.name in moments]
    wanted = [s.layer for s in score_layers(candidates, model.parameters, forget, retain) if s.on_front]
    profile = methods.profile(model, inputs, method)
    assert list(profile.directions[inputs.class_ids[TARGET]]) == wanted
    for layer, d in profile.directions[inputs.class_ids[TARGET]].items():
        solver = Preconditioner(layer, moments[layer], Options().epsilon, None)
        wanted_d = solver.direction(forget[layer])
        torch.testing.assert_close(d, wanted_d, rtol=1e-2, atol=1e-2 * float(wanted_d.abs().max()))


@pytest.mark.parametrize("output_epsilon", [None, 1.0])
def test_a_small_step_lowers_the_cosine_of_the_forget_set(model: ClipModel, task, output_epsilon) -> None:
    # The sign trap: with a minus the concept would get stronger.
    inputs = task.inputs(TARGET)
    pixels, tokens = model.preprocess(inputs.forget_images), model.tokenize(inputs.forget_captions)

    def cosine() -> float:
        with torch.no_grad():
            return float((model.image_features(pixels) * model.text_features(tokens)).sum(1).double().mean())

    method = preconditioned(task, layers=100, output_epsilon=output_epsilon)
    before = cosine()
    directions = methods.profile(model, inputs, method).directions[inputs.class_ids[TARGET]]
    for layer, d in directions.items():
        step = 1e-3 * float(model.parameters[layer].norm() / d.norm())
        with edited(model.parameters, {layer: step * d}):
            assert cosine() < before, layer
        with edited(model.parameters, {layer: -step * d}):
            assert cosine() > before, layer
    assert {tower_of(layer) for layer in directions} == {"vision", "text"}


def test_a_layer_without_forget_gradient_is_not_searched(model: ClipModel, task) -> None:
    with torch.no_grad():
        model.parameters["transformer.resblocks.0.mlp.c_proj.weight"].zero_()  # c_fc gets no gradient
    method = preconditioned(task, layers=100)
    profile = methods.profile(model, task.inputs(TARGET), method)
    searched = set(profile.directions["c-00000003"])
    assert not searched & {f"transformer.resblocks.0.mlp.{part}.weight" for part in ("c_fc", "c_proj")}
    assert searched
    model.parameters["text_projection"].data.fill_(torch.nan)
    with pytest.raises(ModelError, match="is not finite"):
        methods.profile(model, task.inputs(TARGET), method)


def test_end_to_end_one_tensor_changes_and_the_concept_is_gone(model: ClipModel, task) -> None:
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    told: dict[str, list[tuple[int, int]]] = {}
    outcome = unlearn(
        model,
        task.inputs(TARGET),
        preconditioned(task),
        lambda what, done, total: told.setdefault(what, []).append((done, total)),
    )
    (edit,) = outcome.edits
    changed = {n for n, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[n])}
    assert outcome.reached_target
    assert changed == {edit.layer}
    assert set(told) == {"retain gradient", "forget gradients", "step search", "curve"}
    assert all(calls == [(i + 1, len(calls)) for i in range(len(calls))] for calls in told.values())


def test_at_equal_forgetting_it_keeps_more_of_what_it_did_not_see_than_the_raw_gradient(
    model: ClipModel, task
) -> None:
    # Over every matrix that both can forget with, several concepts, and drawings in neither set.
    kept: dict[str, list[float]] = {"raw": [], "preconditioned": []}
    images, labels = items(12, seed=11)
    for target in (0, TARGET):
        inputs = task.inputs(target)
        concept = inputs.class_ids[target]
        method = replace(preconditioned(task, layers=100), search_steps=7)
        directions = methods.profile(model, inputs, method).directions
        raw = forget_gradient(
            model, inputs.forget_images, inputs.forget_captions, list(directions[concept]), 1000
        )
        profiles = {"preconditioned": Profile({}, directions), "raw": Profile({}, {concept: raw})}
        found = {name: steps_of(model, inputs, method, p, target) for name, p in profiles.items()}
        fresh = SearchSplit(model, replace(inputs, search_images=images, search_labels=labels), method)
        for layer in found["raw"].keys() & found["preconditioned"].keys():
            view = fresh.view({tower_of(layer): model.staged(tower_of(layer)).stage_of(layer)})
            for name, steps in found.items():
                update = profiles[name].directions[concept][layer] * steps[layer].step_size
                with edited(model.parameters, {layer: update}):
                    kept[name].append(view.retained_rate_if(lambda most: True))
    assert len(kept["raw"]) >= 12
    assert np.mean(kept["preconditioned"]) > np.mean(kept["raw"]) + 0.05


def steps_of(
    model: ClipModel, inputs: UnlearnInputs, method, profile: Profile, target: int
) -> dict[str, LayerStep]:
    """The smallest step that forgets, by layer, for the layers where there is one."""
    concept = inputs.class_ids[target]
    directions = {concept: {layer: {layer: d} for layer, d in profile.directions[concept].items()}}
    stepper = Stepper(SearchSplit(model, inputs, method), directions, {concept: [target]}, [concept])
    found = stepper.search_layers(lambda what, done, total: None)[concept]
    return {step.layer: step for step in found if step.reached}


def test_several_concepts_take_one_gradient_one_layer_and_one_step_unless_told_apart(
    model: ClipModel, task
) -> None:
    inputs = task.inputs(1, 4)
    ids = tuple(inputs.class_ids[target] for target in inputs.targets)
    method = replace(task.method, name="slug-preconditioned")

    together = methods.profile(model, inputs, method)
    outcome = methods.edit(model, inputs, method, together)

    assert set(together.directions) == {JOINT}
    (edit,) = outcome.edits
    assert edit.concepts == ids
    apart = methods.profile(model, inputs, replace(method, options={"concepts": "apart"}))
    assert set(apart.directions) == set(ids)
    one = methods.profile(model, task.inputs(1), method)
    assert set(one.directions) == {inputs.class_ids[1]}


def test_a_joint_profile_of_other_concepts_is_refused(model: ClipModel, task) -> None:
    method = replace(task.method, name="slug-preconditioned")
    profile = methods.profile(model, task.inputs(0, 1), method)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    for others in ((4, 5), (0,), (0, 1, 4)):
        with pytest.raises(InputError, match="other concepts"):
            methods.edit(model, task.inputs(*others), method, profile)
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
