"""SLUG end to end on tiny trained models, against a plain implementation and its invariants."""

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.errors import InputError, ModelError
from unlearning import ClipModel, UnlearnInputs, methods, search_split, unlearn
from unlearning.curve import CURVE_MULTIPLES
from unlearning.families.clip import tower_of
from unlearning.families.staged_tower import StagedTower
from unlearning.forgetting import Forgetting
from unlearning.gradients import forget_gradient
from unlearning.inplace import edited
from unlearning.layer_steps import LayerStep, best_layer
from unlearning.objectives import forget_loss, retain_loss
from unlearning.request import JOINT
from unlearning.search import StepSearch
from unlearning.search_split import SearchSplit, SplitView
from unlearning.step_search import smallest_or_closest

TARGET = 3


def state(model: ClipModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def changed(model: ClipModel, before: dict[str, Tensor]) -> set[str]:
    """Names of tensors that are not bit-equal."""
    return {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}


class PlainSlug:
    """SLUG as the paper tells it: whole-batch gradients, a copied model and a full evaluation per trial."""

    def __init__(self, model: ClipModel, inputs: UnlearnInputs, method) -> None:
        self.model, self.inputs, self.method = model, inputs, method
        self.labels = torch.as_tensor(inputs.search_labels)

    def evaluate(self, model: ClipModel) -> tuple[float, float]:
        """FA@forget_at over the targets and TA@1 over the rest, on the search split."""
        image = model.image_features(model.preprocess(self.inputs.search_images))
        per_template = [
            model.text_features(model.tokenize([t.format(name) for name in self.inputs.class_names]))
            for t in self.inputs.templates
        ]
        classes = torch.stack(per_template).mean(0)
        top = (image @ (classes / classes.norm(dim=1, keepdim=True)).T).argsort(dim=1, descending=True)
        rank = (top == self.labels[:, None]).int().argmax(dim=1) + 1
        forget = torch.isin(self.labels, torch.tensor(self.inputs.targets))
        known = (rank <= self.method.forget_at).double()
        return float(known[forget].mean()), float((rank == 1).double()[~forget].mean())

    def gradients(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs, model = self.inputs, deepcopy(self.model)
        weights = {c.name: model.net.get_parameter(c.name).requires_grad_() for c in self.model.candidates()}
        image = model.image_features(model.preprocess(inputs.forget_images))
        loss = forget_loss(image, model.text_features(model.tokenize(inputs.forget_captions)))
        forget = torch.autograd.grad(loss, list(weights.values()))
        image = model.image_features(model.preprocess(inputs.retain_images))
        text = model.text_features(model.tokenize(inputs.retain_captions))
        order = torch.randperm(len(image), generator=torch.Generator().manual_seed(inputs.seed))
        batches = order.split(self.method.retain_batch)
        loss = sum(retain_loss(image[b], text[b], model.net.logit_scale.exp()) for b in batches) / len(
            batches
        )
        retain = torch.autograd.grad(loss, list(weights.values()))
        return dict(zip(weights, forget, strict=True)), dict(zip(weights, retain, strict=True))

    def front(self, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> list[str]:
        scores = {}
        for layer, g in forget.items():
            importance = g.norm() / self.model.parameters[layer].norm()
            cosine = (g * retain[layer]).sum() / (g.norm() * retain[layer].norm())
            scores[layer] = float(importance), float(cosine.abs())
        front = []
        for layer, (i, a) in scores.items():
            rivals = [o for o in scores if o.startswith("visual") == layer.startswith("visual")]
            if not any(scores[o][0] > i and scores[o][1] < a for o in rivals):
                front.append(layer)
        return front

    def search(self, layer: str, gradient: Tensor) -> list[tuple[float, float, float]]:
        """(step, FA, TA) of every trial of one layer."""
        trials: list[tuple[float, float, float]] = []
        low, high = 0.0, None
        importance = float(gradient.norm() / self.model.parameters[layer].norm())
        step = importance / 10 if self.method.options.get("first_step") == "importance" else 0.1 / importance
        for _ in range(self.method.search_steps):
            copy = deepcopy(self.model)
            with torch.no_grad():
                copy.net.get_parameter(layer).add_(step * gradient)
                fa, ta = self.evaluate(copy)
            trials.append((step, fa, ta))
            low, high = (low, step) if fa <= self.method.forget_target else (step, high)
            step = 2 * step if high is None else (low + high) / 2
        return trials


@pytest.mark.parametrize("first_step", ["weight", "importance"])
def test_the_whole_search_agrees_with_a_plain_implementation(model: ClipModel, task, first_step: str) -> None:
    inputs = task.inputs(TARGET)
    # From where Algorithm 1 begins there are some doublings more to go.
    paper = replace(
        task.method,
        step_rule="bisection",
        search_steps=task.method.search_steps + (6 if first_step == "importance" else 0),
        options={"first_step": first_step},
    )
    plain = PlainSlug(model, inputs, paper)
    forget, retain = plain.gradients()
    front = plain.front(forget, retain)
    expected = {layer: plain.search(layer, forget[layer]) for layer in front}
    importance = {layer: float(forget[layer].norm() / model.parameters[layer].norm()) for layer in front}
    assert plain.evaluate(model)[0] == 1.0, "the model should know the concept before"

    outcome = unlearn(model, inputs, paper)

    scores = outcome.profile[inputs.class_ids[TARGET]]
    assert [s.layer for s in scores if s.on_front] == front
    assert len(front) >= 4
    assert {s.tower for s in scores if s.on_front} == {"vision", "text"}
    best: tuple[float, float, str, float] | None = None
    given_up = []
    for layer, trials in expected.items():
        ours = [t for t in outcome.trials if t.layer == layer]
        assert [t.step_size for t in ours] == pytest.approx([t[0] for t in trials], rel=1e-4), layer
        assert [t.forget_rate for t in ours] == [t[1] for t in trials], layer
        reaching = [t for t in trials if t[1] <= task.method.forget_target]
        if reaching:
            step, _, ta = min(reaching)
            kept = [t.retained_rate for t in ours if t.retained_rate is not None]
            assert kept in ([ta], []), layer
            given_up += [] if kept else [ta]
            change = step * importance[layer]
            best = min(filter(None, [best, (-ta, change, layer, step)]))
    assert best is not None
    assert all(ta < -best[0] for ta in given_up)
    (edit,) = outcome.edits
    assert (edit.layer, edit.concepts) == (best[2], (inputs.class_ids[TARGET],))
    assert edit.step_size == pytest.approx(best[3], rel=1e-4)
    assert edit.relative_change == pytest.approx(best[1], rel=1e-3)
    assert outcome.reached_target
    assert plain.evaluate(model) == (0.0, -best[0])


def test_a_small_step_lowers_the_cosine_of_the_forget_set(model: ClipModel, task) -> None:
    # Invariant 1, the sign trap: with a minus the concept would get stronger.
    inputs = task.inputs(TARGET)
    pixels, tokens = model.preprocess(inputs.forget_images), model.tokenize(inputs.forget_captions)

    def cosine() -> float:
        with torch.no_grad():
            return float((model.image_features(pixels) * model.text_features(tokens)).sum(1).double().mean())

    profile = methods.profile(model, inputs, task.method)
    before = cosine()
    for layer, gradient in profile.directions[inputs.class_ids[TARGET]].items():
        step = 1e-3 * float(model.parameters[layer].norm() / gradient.norm())
        with edited(model.parameters, {layer: step * gradient}):
            assert cosine() < before, layer
        with edited(model.parameters, {layer: -step * gradient}):
            assert cosine() > before, layer


def test_the_curve_starts_at_the_original_and_its_cosine_falls(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    plain = PlainSlug(model, inputs, task.method)
    before = plain.evaluate(model)
    outcome = unlearn(model, inputs, task.method)
    points = outcome.curve
    chosen = outcome.edits[0].step_size
    assert [p.step_size for p in points] == pytest.approx([m * chosen for m in CURVE_MULTIPLES])
    assert (points[0].forget_rate, points[0].retained_rate) == before
    at_one = points[CURVE_MULTIPLES.index(1.0)]
    assert (at_one.forget_rate, at_one.retained_rate) == plain.evaluate(model)
    cosines = [p.forget_score for p in points[:5]]
    assert cosines == sorted(cosines, reverse=True)


@pytest.mark.parametrize(
    ("targets", "steps", "again"), [((TARGET,), 10, 0), ((TARGET,), 1, 1), ((0, 3, 5), 10, 1)]
)
def test_the_curve_measures_the_step_again_only_if_its_search_did_not(
    model: ClipModel, task, monkeypatch, targets: tuple[int, ...], steps: int, again: int
) -> None:
    measured, both = [], search_split.SplitView.both
    monkeypatch.setattr(
        search_split.SplitView, "both", lambda view, own: measured.append(own) or both(view, own)
    )
    outcome = unlearn(model, task.inputs(*targets), replace(task.method, search_steps=steps))
    assert len(measured) == len(CURVE_MULTIPLES) - 1 + again
    at_one = outcome.curve[CURVE_MULTIPLES.index(1.0)]
    after = PlainSlug(model, task.inputs(*targets), task.method).evaluate(model)
    assert (at_one.forget_rate, at_one.retained_rate) == after


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_only_the_named_tensor_differs(model: ClipModel, task, tower: str) -> None:
    # Invariant 2.  Catches a trial that is not undone, and an edit of a tower nobody asked for.
    before = state(model)
    outcome = unlearn(model, task.inputs(TARGET), replace(task.method, towers=(tower,), search_steps=3))
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    assert len(outcome.edits) == 1
    assert {s.tower for s in outcome.profile["c-00000003"]} == {tower}
    assert {t.tower for t in outcome.trials} == {tower}


def test_several_concepts_add_up_at_the_original_weights(model: ClipModel, task) -> None:
    targets = (0, 3, 5)
    inputs, before = task.inputs(*targets), state(model)
    profile = methods.profile(model, inputs, task.method)
    single = {}
    for target in targets:
        rows = inputs.forget_labels == target
        captions = [c for c, own in zip(inputs.forget_captions, rows, strict=True) if own]
        concept = inputs.class_ids[target]
        layers = list(profile.directions[concept])
        single[concept] = forget_gradient(model, inputs.forget_images[rows], captions, layers, 1000)

    outcome = methods.edit(model, inputs, task.method, profile)

    joint = [t for t in outcome.trials if t.concept == JOINT]
    reached = [t.step_size for t in joint if t.forget_rate <= task.method.forget_target]
    assert outcome.reached_target
    factor = min(reached)
    assert sorted(c for edit in outcome.edits for c in edit.concepts) == sorted(single)
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    for edit in outcome.edits:
        expected = before[edit.layer].clone()
        steps = {}
        for concept in edit.concepts:
            own = [t for t in outcome.trials if (t.concept, t.layer) == (concept, edit.layer)]
            (steps[concept],) = [t.step_size for t in own if t.retained_rate is not None]
            expected += factor * steps[concept] * single[concept][edit.layer]
        torch.testing.assert_close(model.parameters[edit.layer].detach(), expected, rtol=1e-4, atol=1e-5)
        assert edit.step_size == pytest.approx(factor * sum(steps.values()))
        change = (expected - before[edit.layer]).norm() / before[edit.layer].norm()
        assert edit.relative_change == pytest.approx(float(change), rel=1e-3)
    assert PlainSlug(model, inputs, task.method).evaluate(model)[0] == 0.0


def test_what_is_known_without_a_step_is_measured_once_for_all_layers(
    model: ClipModel, task, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, asked = task.inputs(1, 4), []
    measured = SplitView.forgetting

    def counted(view: SplitView, targets: Sequence[int], exact: bool = True) -> Forgetting | None:
        if not view.entering:  # of no stage: nothing is edited
            asked.append(tuple(targets))
        return measured(view, targets, exact)

    monkeypatch.setattr(SplitView, "forgetting", counted)
    outcome = methods.unlearn(model, inputs, task.method)
    assert len({(trial.concept, trial.layer) for trial in outcome.trials}) > 3, "no layers, no test"
    assert sorted(asked) == [(1,), (1, 4), (4,)]


def test_profile_and_search_can_run_apart(model: ClipModel, task, tmp_path) -> None:
    from unlearning.gradients import load_gradients, save_gradients

    inputs, before = task.inputs(1, 4), state(model)
    together = unlearn(model, inputs, task.method)
    edited_weights = state(model)
    model.net.load_state_dict(before)
    profile = methods.profile(model, inputs, task.method)
    assert not changed(model, before)
    save_gradients(profile.directions, tmp_path / "gradients.safetensors")
    loaded = replace(profile, directions=load_gradients(tmp_path / "gradients.safetensors"))
    assert methods.edit(model, inputs, task.method, loaded) == together
    assert not changed(model, edited_weights)


@pytest.mark.parametrize("broken_after", [0, 7, 40])
def test_an_exception_leaves_every_bit_as_it_was(
    model: ClipModel, task, monkeypatch, broken_after: int
) -> None:
    before, seen = state(model), []
    staged = {tower: model.staged(tower) for tower in ("vision", "text")}
    text = staged["text"]

    def breaks(batch):
        seen.append(1)
        if len(seen) > 20 + broken_after:
            raise RuntimeError("somebody pulled the plug")
        return text.stages[-1].run(batch)

    staged["text"] = replace(text, stages=(*text.stages[:-1], replace(text.stages[-1], run=breaks)))
    monkeypatch.setattr(model, "staged", staged.__getitem__)
    with pytest.raises(RuntimeError, match="plug"):
        unlearn(model, task.inputs(TARGET), task.method)
    assert not changed(model, before)


def test_a_target_out_of_reach_is_said_and_the_closest_attempt_made(model: ClipModel, task) -> None:
    # Negative control for the sign: along minus the gradient a few steps only strengthen the concept.
    inputs, before = task.inputs(TARGET), state(model)
    profile = methods.profile(model, inputs, task.method)
    concept = inputs.class_ids[TARGET]
    layers = ["text_projection", "transformer.resblocks.1.mlp.c_proj.weight"]
    gradients = forget_gradient(model, inputs.forget_images, inputs.forget_captions, layers, 16)
    wrong_way = {concept: {layer: -g for layer, g in gradients.items()}}
    outcome = methods.edit(
        model, inputs, replace(task.method, search_steps=2), replace(profile, directions=wrong_way)
    )
    assert not outcome.reached_target
    assert all(t.forget_rate > 0 for t in outcome.trials)
    closest = min(t.forget_rate for t in outcome.trials)
    (edit,) = outcome.edits
    (chosen,) = [t for t in outcome.trials if (t.layer, t.step_size) == (edit.layer, edit.step_size)]
    assert chosen.forget_rate == closest
    assert changed(model, before) == {edit.layer}


def test_concepts_that_cannot_be_forgotten_together_are_not_called_forgotten(model: ClipModel, task) -> None:
    # With one trial there is only factor 1, at which updates that were enough alone get in each other's way.
    outcome = unlearn(model, task.inputs(0, 3, 5), replace(task.method, search_steps=1))
    (joint,) = [t for t in outcome.trials if t.concept == JOINT]
    assert joint.step_size == 1.0
    assert joint.forget_rate > 0.0
    assert not outcome.reached_target


def step(layer: str, *, reached: bool, fa: float, ta: float, change: float) -> LayerStep:
    return LayerStep("c", layer, 1.0, reached, fa, ta, change, ())


def test_the_layer_that_keeps_most_wins() -> None:
    kept = step("kept", reached=True, fa=0.0, ta=0.8, change=0.5)
    assert best_layer([step("poor", reached=True, fa=0.0, ta=0.3, change=0.1), kept]) is kept
    assert best_layer([kept, step("tie", reached=True, fa=0.0, ta=0.8, change=0.6)]) is kept
    assert best_layer([step("close", reached=False, fa=0.1, ta=0.9, change=0.1), kept]) is kept
    close = step("close", reached=False, fa=0.1, ta=0.2, change=0.1)
    assert best_layer([step("far", reached=False, fa=0.5, ta=0.9, change=0.1), close]) is close
    with pytest.raises(ModelError, match="no layer"):
        best_layer([])


def test_the_closest_step_is_that_of_the_best_known_target() -> None:
    uneven = Forgetting({0: 1.0, 1: 0.0}, rate=0.1, score=0.0, margin=1.0)  # most items are of target 1
    even = Forgetting({0: 0.2, 1: 0.2}, rate=0.2, score=0.0, margin=0.5)
    gone = Forgetting({0: 0.0, 1: 0.0}, rate=0.0, score=0.0, margin=-0.5)
    assert smallest_or_closest(StepSearch(((1.0, uneven), (2.0, even)), None)) == (2.0, even)
    assert smallest_or_closest(StepSearch(((2.0, even), (1.5, even)), None)) == (1.5, even)
    assert smallest_or_closest(StepSearch(((2.0, even), (4.0, gone), (3.0, gone)), 3.0)) == (3.0, gone)


@pytest.mark.parametrize("looks", [8, 1000])
def test_a_layer_is_given_up_only_where_it_cannot_win(
    model: ClipModel, task, monkeypatch, looks: int
) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    outcomes, weights = [], []
    for times in (1, looks):  # in one piece every item is looked at before anybody asks
        monkeypatch.setattr(search_split, "LOOKS", times)
        model.net.load_state_dict(before)
        outcomes.append(unlearn(model, inputs, task.method))
        weights.append(state(model))
    whole, early = outcomes
    assert early.edits == whole.edits
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in before)
    kept = {t.layer: t.retained_rate for t in early.trials if t.retained_rate is not None}
    full = {t.layer: t.retained_rate for t in whole.trials if t.retained_rate is not None}
    assert kept.items() <= full.items()
    assert len({t.layer for t in early.trials}) == len({t.layer for t in whole.trials})
    best = max(full.values())
    assert all(full[layer] < best for layer in full.keys() - kept.keys())
    assert full.keys() - kept.keys(), "no layer was given up: the test shows nothing"


@pytest.mark.parametrize(
    "layer", ["transformer.resblocks.0.mlp.c_fc.weight", "visual.transformer.resblocks.0.mlp.c_fc.weight"]
)
def test_what_enters_a_layer_to_be_edited_is_not_computed_twice(
    make_model, task, monkeypatch, layer: str
) -> None:
    model, inputs = make_model("vit"), task.inputs(TARGET)
    tower, stage = tower_of(layer), model.staged(tower_of(layer)).stage_of(layer)
    passed: list[int] = []
    entry = model.staged(tower).stages[0].prefixes
    run = StagedTower.passed

    def counted(self, pieces, first, last):
        if self.stages[0].prefixes == entry:
            passed.append(len(self.stages[first:last]) * sum(len(piece.rows) for piece in pieces))
        return run(self, pieces, first, last)

    monkeypatch.setattr(StagedTower, "passed", counted)
    last = {"text": "ln_final.weight", "vision": "visual.ln_post.weight"}[tower]
    work = []
    for known in ((), (layer,), (last, layer)):
        passed.clear()
        SearchSplit(model, inputs, task.method, known).view({tower: stage})
        work.append(sum(passed))
    stages = len(model.staged(tower).stages)
    assert work[0] == work[1] * (stages + stage) / stages  # once, and once more up to the layer
    assert work[1] == work[2]


def test_what_is_kept_is_counted_exactly_or_not_at_all(model: ClipModel, task, monkeypatch) -> None:
    view = SearchSplit(model, task.inputs(TARGET), task.method).view({"vision": 0})
    monkeypatch.setattr(search_split, "LOOKS", 1)
    whole = view.retained_rate_if(lambda most: True)
    assert 0.0 < whole < 1.0
    monkeypatch.setattr(search_split, "LOOKS", 5)
    assert view.retained_rate_if(lambda most: True) == whole
    asked: list[float] = []
    assert view.retained_rate_if(lambda most: asked.append(most) or most >= whole) == whole
    assert len(asked) > 2
    assert asked[0] == 1.0
    assert asked == sorted(asked, reverse=True)
    assert view.retained_rate_if(lambda most: False) is None


def test_what_was_wrong_before_an_edit_is_counted_first(model: ClipModel, task) -> None:  # type: ignore[no-untyped-def]
    split = SearchSplit(model, task.inputs(TARGET), task.method)
    kept = split.kept_rows
    assert sorted(kept.tolist()) == torch.nonzero(~torch.isin(split.labels, split.targets)).flatten().tolist()
    scores = split.image_features[kept] @ split.class_embeddings.T
    right = scores.argmax(dim=1) == split.labels[kept]
    wrong = int((~right).sum())
    assert 0 < wrong < len(kept)
    assert right.tolist() == [False] * wrong + [True] * (len(kept) - wrong)


def test_huge_steps_that_break_the_model_are_not_success(model: ClipModel, task) -> None:
    # A direction of 1e36 per entry overflows fp32 inside the tower: neither a crash nor "forgotten".
    inputs, before = task.inputs(TARGET), state(model)
    profile = methods.profile(model, inputs, task.method)
    concept = inputs.class_ids[TARGET]
    layer = "text_projection"
    with torch.no_grad():
        model.parameters[layer].mul_(1e30)  # features are normalised: the model is the same, near overflow
    huge = replace(profile, directions={concept: {layer: torch.full_like(model.parameters[layer], 1e30)}})
    start = state(model)
    view = SearchSplit(model, inputs, task.method).view({"text": model.staged("text").stage_of(layer)})
    with edited(model.parameters, {layer: torch.full_like(model.parameters[layer], 3e38)}):
        assert view.forgetting([TARGET]) is None
        assert view.retained_rate_if(lambda most: True) == 0.0
    outcome = methods.edit(model, inputs, replace(task.method, search_steps=40), huge)
    assert all(math.isfinite(v) for t in outcome.trials for v in (t.step_size, t.forget_rate, t.forget_score))
    assert changed(model, start) == {layer}
    assert before.keys() == start.keys()


def test_text_edits_measured_on_near_classes_first_equal_the_full_measurement(
    model: ClipModel, task, monkeypatch
) -> None:
    # Catches a stop before enough classes are above the true one.
    inputs = task.inputs(1, 4)
    profile = methods.profile(model, inputs, task.method)
    figures = []
    for first_classes in (1, 100):
        monkeypatch.setattr("unlearning.search_split.FIRST_CLASSES", first_classes)
        view = SearchSplit(model, inputs, task.method).view({"text": 0})
        seen = []
        for gradients in profile.directions.values():
            for layer, gradient in gradients.items():
                for relative in (0.1, 0.4, 1.6):
                    size = relative * float(model.parameters[layer].norm() / gradient.norm())
                    with edited(model.parameters, {layer: size * gradient}):
                        measured = view.forgetting([1, 4])
                    assert measured is not None
                    seen.append((measured.rates, measured.rate, round(measured.score, 5)))
        figures.append(seen)
    assert figures[0] == figures[1]
    assert {0.0, 1.0} & {rate for _, rate, _ in figures[0]}


def test_retain_captions_are_the_real_ones(model: ClipModel, task, monkeypatch) -> None:
    # Bug B2 of the reference scripts: every retain caption replaced by the concept's name.
    inputs = task.inputs(TARGET)
    seen: list[str] = []
    tokenize = model.tokenize
    monkeypatch.setattr(model, "tokenize", lambda texts: seen.extend(texts) or tokenize(texts))
    profile = methods.profile(model, inputs, task.method)
    assert set(inputs.retain_captions) <= set(seen)
    monkeypatch.undo()

    plain = PlainSlug(model, inputs, task.method)
    forget, retain = plain.gradients()
    one_name = (inputs.class_names[TARGET],) * (len(inputs.retain_captions) - 1)
    collapsed = replace(inputs, retain_captions=(*one_name, "something else"))
    _, wrong = PlainSlug(model, collapsed, task.method).gradients()
    ours = {s.layer: s.alignment for s in profile.scores[inputs.class_ids[TARGET]]}

    def alignment(gradients: dict[str, Tensor]) -> dict[str, float]:
        return {
            k: float(torch.cosine_similarity(forget[k].flatten(), g.flatten(), 0).abs())
            for k, g in gradients.items()
        }

    assert ours == pytest.approx(alignment(retain), abs=1e-3)
    assert ours != pytest.approx(alignment(wrong), abs=1e-1)


def test_signed_alignment_is_an_option_and_keeps_the_sign(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    concept = inputs.class_ids[TARGET]
    signed = replace(task.method, options={"alignment": "signed"})

    plain = {s.layer: s.alignment for s in methods.profile(model, inputs, task.method).scores[concept]}
    ours = {s.layer: s.alignment for s in methods.profile(model, inputs, signed).scores[concept]}

    assert {layer: abs(value) for layer, value in ours.items()} == plain
    assert min(ours.values()) < 0 < max(ours.values())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("slug-fast", {}, "unknown method 'slug-fast'; there are .*slug"),
        ("slug", {"alignement": "signed"}, "alignement"),
        ("slug", {"alignment": "negative"}, "alignment"),
    ],
)
def test_an_unknown_method_or_option_is_refused_before_any_work(
    model: ClipModel, task, name: str, options: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        methods.profile(model, task.inputs(TARGET), replace(task.method, name=name, options=options))


def test_progress_counts_every_part_to_its_end(model: ClipModel, task) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def listen(what: str, done: int, total: int) -> None:
        told.setdefault(what, []).append((done, total))

    unlearn(model, task.inputs(1, 4), replace(task.method, search_steps=2), listen)
    assert set(told) == {"retain gradient", "forget gradients", "step search", "joint step", "curve"}
    assert all(calls == [(i + 1, len(calls)) for i in range(len(calls))] for calls in told.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"towers": ()}, "towers"),
        ({"towers": ("vision", "audio")}, "audio"),
        ({"forget_at": 8}, "1..7 for 8 classes, got 8"),
        ({"forget_at": 0}, "got 0"),
        ({"forget_target": 1.0}, "forget_target"),
        ({"search_steps": 0}, "search_steps"),
        ({"micro_batch": 0}, "micro_batch"),
        ({"retain_batch": 1}, "retain_batch"),
    ],
)
def test_options_that_cannot_work_are_refused(
    make_model: Callable[..., ClipModel], task, change: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        unlearn(make_model("vit"), task.inputs(TARGET), replace(task.method, **change))


def test_a_profile_of_other_concepts_is_refused(model: ClipModel, task) -> None:
    profile = methods.profile(model, task.inputs(1), task.method)
    with pytest.raises(InputError, match="other concepts"):
        methods.edit(model, task.inputs(2), task.method, profile)


def test_the_margin_is_negative_exactly_where_the_target_is_met(model: ClipModel, task) -> None:
    inputs = task.inputs(1, 4)
    profile = methods.profile(model, inputs, task.method)
    met = set()
    for allowed in (0.0, 0.25):
        split = SearchSplit(model, inputs, replace(task.method, forget_target=allowed))
        for tower in ("vision", "text"):
            view = split.view({tower: 0})
            for layer, direction in profile.directions[inputs.class_ids[1]].items():
                if (tower == "vision") != layer.startswith("visual."):
                    continue
                for relative in (0.05, 0.2, 0.8, 3.2):
                    size = relative * float(model.parameters[layer].norm() / direction.norm())
                    with edited(model.parameters, {layer: size * direction}):
                        exact, near = (view.forgetting([1], exact=e) for e in (True, False))
                        whole = view.both([1])
                        retained = view.retained_rate_if(lambda most: True)
                    assert exact is not None
                    assert near is not None
                    assert whole is not None
                    assert (exact.margin < 0) == (exact.worst <= allowed)
                    assert near.margin >= exact.margin - 1e-5
                    assert (whole[0].rates, whole[1]) == (exact.rates, retained)
                    assert whole[0].margin == pytest.approx(exact.margin, abs=1e-5)
                    met.add(exact.margin < 0)
    assert met == {True, False}
