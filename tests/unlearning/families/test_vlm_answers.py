"""Forgetting a name in answers: the loss and its gradient, the search split, and whole edits."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.conftest import NAMES, Task, captions, items
from tests.unlearning.families import vlm_tiny
from tests.unlearning.families.vlm_tiny import TASK
from unlearning import edit, profile, unlearn
from unlearning.families.clip import ClipModel
from unlearning.families.vlm import VlmModel
from unlearning.families.vlm_answers import answer_gradient, name_loss
from unlearning.families.vlm_request import VlmRequest
from unlearning.families.vlm_split import AnswerSplit
from unlearning.inplace import edited
from unlearning.naming import Names
from unlearning.request import Profile

Taught = Callable[[str], VlmModel]
KINDS = list(vlm_tiny.READS)
TARGET = 2  # a green square


def changed(before: dict[str, torch.Tensor], model: VlmModel) -> set[str]:
    return {name for name, weight in model.state().items() if not torch.equal(weight, before[name])}


def state(model: VlmModel) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state().items()}


@pytest.fixture
def method() -> Method:
    return Method(
        name="slug", towers=("vision",), forget_at=2, micro_batch=16, retain_batch=24, search_steps=7
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_answers_does_not_depend_on_the_micro_batch(taught: Taught, kind: str) -> None:
    model = taught(kind)
    images, labels = items(2, seed=3)
    names = [NAMES[i] for i in labels]
    layers = [c.name for c in model.candidates()]
    whole = answer_gradient(model, images, names, layers, 100, TASK)
    for size in (1, 5):
        pieces = answer_gradient(model, images, names, layers, size, TASK)
        for layer in layers:
            torch.testing.assert_close(pieces[layer], whole[layer], atol=1e-5, rtol=1e-4)
    assert all(float(grad.abs().max()) > 0 for grad in whole.values())
    assert not any(p.requires_grad for p in model.parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_step_along_the_gradient_makes_the_name_less_likely(taught: Taught, kind: str) -> None:
    """Catches a flipped sign; and the first-order change is the gradient's squared norm."""
    model = taught(kind)
    images, _ = items(6, seed=3, labels=[TARGET])
    names = [NAMES[TARGET]] * len(images)

    def loss() -> float:
        with torch.no_grad():
            return float(
                name_loss(model, model.features(images).double().float(), names, TASK).loss.double().mean()
            )

    for layer in (model.candidates()[0].name, model.candidates()[-1].name):
        gradient = answer_gradient(model, images, names, [layer], 16, TASK)[layer]
        norm = float(gradient.norm())
        step = 3e-4 / norm  # a well-taught model is nearly sure: its loss bends soon
        before = loss()
        with edited(model.parameters, {layer: gradient * step}):
            up = loss()
        with edited(model.parameters, {layer: gradient * -step}):
            down = loss()
        assert down < before < up
        assert (up - down) / 2 == pytest.approx(3e-4 * norm, rel=0.1)


def test_what_makes_no_pairs_is_refused(taught: Taught) -> None:
    model = taught("vit")
    images, _ = items(1, seed=3)
    with pytest.raises(InputError, match="8 images and 1 names"):
        answer_gradient(model, images, ["red square"], [], 4, TASK)
    with pytest.raises(ModelError, match=r"no weight 'visual\.nothing'"):
        answer_gradient(model, images[:1], ["red square"], ["visual.nothing"], 4, TASK)


@pytest.mark.parametrize("kind", KINDS)
def test_the_margin_has_the_sign_of_what_is_decoded(
    taught: Taught, task: Task, method: Method, kind: str
) -> None:
    model, method = taught(kind), replace(method, forget_at=1)
    inputs = task.inputs(TARGET)
    split = AnswerSplit(model, inputs, method, TASK)
    answers = model.answers(inputs.search_images, [TASK.question] * len(inputs.search_images))
    for target in range(len(NAMES)):
        own = np.flatnonzero(inputs.search_labels == target)
        seen = split.view({}).forgetting([target])
        assert seen is not None
        assert seen.rate == Names(NAMES).rate([answers[i] for i in own], [target] * len(own))
        assert (seen.margin < 0) == (seen.rate == 0)
        assert 0 < seen.score <= 1


def test_deeper_a_name_counts_as_known_while_its_tokens_are_near_at_hand(
    taught: Taught, task: Task, method: Method
) -> None:
    model, inputs = taught("vit"), task.inputs(TARGET)
    known = []
    for depth in (1, 2, 5):
        split = AnswerSplit(model, inputs, replace(method, forget_at=depth), TASK)
        seen = [split.view({}).forgetting([target]) for target in range(len(NAMES))]
        known.append([(s.rate, s.margin) for s in seen if s is not None])
    for shallow, deep in pairwise(known):
        assert all(a <= b for (a, _), (b, _) in zip(shallow, deep, strict=True))
        assert all(a < b for (_, a), (_, b) in zip(shallow, deep, strict=True))
        assert all((margin < 0) == (rate == 0) for rate, margin in deep)


@pytest.mark.parametrize("kind", KINDS)
def test_a_view_from_an_edited_stage_sees_what_the_whole_model_sees(
    taught: Taught, task: Task, method: Method, kind: str
) -> None:
    model = taught(kind)
    inputs = task.inputs(TARGET)
    split = AnswerSplit(model, inputs, method, TASK)
    before = None
    vision = [c for c in model.candidates() if c.tower == "vision" and len(c.shape) > 1]
    for candidate in [*vision[::3], model.candidates()[-1]]:
        tower, stage = split.place(candidate.name)
        assert tower == candidate.tower
        before = split.view({tower: stage}, before=before)
        noise = torch.randn(candidate.shape, generator=torch.Generator().manual_seed(0))
        weight = model.parameters[candidate.name]
        with edited(model.parameters, {candidate.name: 0.3 * weight.std() * noise}):
            found = before.both([TARGET, 0])
            fresh = AnswerSplit(model, inputs, method, TASK).view({}).both([TARGET, 0])
        assert found is not None
        assert fresh is not None
        assert found[0].rates == fresh[0].rates
        assert found[0].margin == pytest.approx(fresh[0].margin, abs=1e-3)
        assert found[1] == fresh[1]


@pytest.mark.parametrize("kind", KINDS)
def test_most_names_are_forgotten_by_gradients_of_answers(
    taught: Taught, task: Task, method: Method, kind: str
) -> None:
    # Which ones differs between processors: rounding decides what training ends at.
    images, labels = items(8, seed=11)
    known = []
    for target in range(len(NAMES)):
        model = taught(kind)
        before = state(model)
        outcome = unlearn(model, VlmRequest(task.inputs(target), TASK), method)
        assert changed(before, model) == {edit.layer for edit in outcome.edits}
        if not outcome.reached_target:
            continue
        said = model.answers(images, [TASK.question] * len(images))
        ranks = np.array(Names(NAMES).ranks(said, labels.tolist()))
        known.append([(ranks[own] == 1).mean() for own in (labels == target, labels != target)])
    assert len(known) > len(NAMES) / 2
    forgotten, kept = np.mean(known, axis=0)
    assert forgotten <= 0.1
    assert kept > forgotten + 0.2  # colours and shapes are shared, so a plain step costs others much


@pytest.mark.parametrize("name", ["slug", "slug-preconditioned"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_clip_model_do_too_and_answers_say_how_far(
    taught: Taught, task: Task, method: Method, kind: str, name: str
) -> None:
    model = taught(kind)
    request, before = VlmRequest(task.inputs(TARGET), TASK, "clip"), state(model)
    method = replace(method, name=name)
    by_clip, by_answers = (
        profile(model, r, method) for r in (request, replace(request, objective="answers"))
    )
    assert by_clip.scores != by_answers.scores
    with pytest.raises(InputError, match=r"no gradient for decoder\S+: take towers \[vision\]"):
        profile(model, request, replace(method, towers=("language",)))
    outcome = edit(model, request, method, by_clip)
    assert outcome.reached_target
    assert changed(before, model) == {edit.layer for edit in outcome.edits}
    seen = request.search_split(model, method).view({}).forgetting([TARGET])
    assert seen is not None
    assert seen.rate == 0


LINEAR = "visual.transformer.resblocks.0.mlp.c_proj.weight"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slug-preconditioned", {}),
        ("ssd", {"selections": (1e-3,)}),  # so that something is dampened for sure
        ("erase-linear", {"layer": LINEAR}),
    ],
)
def test_other_methods_stay_within_what_is_read(
    taught: Taught, task: Task, method: Method, name: str, options: dict[str, Any]
) -> None:
    model = taught("vit")
    before = state(model)
    unlearn(model.clip, task.inputs(TARGET), replace(method, name=name, options=options, search_steps=2))
    stages = {model.staged("vision").stage_of(layer) for layer in changed(before, model)}
    assert stages
    assert max(stages) < model.reader.cut


@pytest.mark.parametrize(("kind", "layer"), [("vit", None), ("rn", None), ("vit", "visual.proj")])
def test_an_erasure_that_no_answer_would_see_is_refused(
    taught: Taught, task: Task, method: Method, kind: str, layer: str | None
) -> None:
    """Without a name `erase-linear` takes the head of a tower, which is never read here."""
    model = taught(kind)
    with pytest.raises(InputError, match=r"name a layer|no layer that an erasure"):
        unlearn(
            model.clip, task.inputs(TARGET), replace(method, name="erase-linear", options={"layer": layer})
        )


def test_without_a_text_tower_names_are_forgotten_all_the_same(
    make_model: Callable[..., ClipModel], taught: Taught, task: Task, method: Method
) -> None:
    whole = taught("vit")
    blank = vlm_tiny.over(make_model("vit"), "vit", text=False)
    alone = VlmModel(blank.config, {name: whole.state()[name].clone() for name in blank.state()}, blank.files)
    request = VlmRequest(task.inputs(TARGET), TASK)
    found, expected = (profile(model, request, method) for model in (alone, whole))
    assert found.scores == expected.scores
    before = state(alone)
    outcome = edit(alone, request, method, found)
    assert outcome == edit(whole, request, method, expected)
    assert changed(before, alone) == {edit.layer for edit in outcome.edits}
    assert all(torch.equal(alone.state()[name], whole.state()[name]) for name in before)
    with pytest.raises(ModelError, match="no CLIP text tower"):
        profile(alone, replace(request, objective="clip"), method)


@pytest.mark.parametrize(
    "layer", ["visual.transformer.resblocks.1.mlp.c_fc.weight", "visual.proj", "text_projection"]
)
def test_a_direction_that_no_answer_depends_on_is_refused(
    taught: Taught, task: Task, method: Method, layer: str
) -> None:
    model = taught("vit")
    inputs, before = task.inputs(TARGET), state(model)
    concept = inputs.class_ids[TARGET]
    direction = torch.ones_like(model.clip.parameters[layer])
    with pytest.raises(ModelError, match=r"behind the one|belongs to 0 stages"):
        edit(model, VlmRequest(inputs, TASK), method, Profile({concept: ()}, {concept: {layer: direction}}))
    assert changed(before, model) == set()


def test_retain_captions_without_a_name_are_left_out(taught: Taught, task: Task, method: Method) -> None:
    model = taught("vit")
    images, labels = items(2, seed=3)
    texts = list(captions(labels))
    texts[0] = "something else"
    some: dict[str, Any] = {"retain_images": images, "retain_captions": tuple(texts)}
    rest: dict[str, Any] = {"retain_images": images[1:], "retain_captions": tuple(texts[1:])}
    found = [
        profile(model, VlmRequest(task.inputs(TARGET, **own), TASK), method).scores for own in (some, rest)
    ]
    assert found[0] == found[1]
    nameless = {"retain_images": images, "retain_captions": tuple(f"thing {i}" for i in range(16))}
    inputs = task.inputs(TARGET, **nameless)
    with pytest.raises(InputError, match="none of 16 retain captions"):
        profile(model, VlmRequest(inputs, TASK), method)


def test_no_retain_item_is_held_to_the_name_of_a_target(task: Task) -> None:
    """Catches a retain side that holds on to what is erased, because a caption names it first."""
    target = NAMES[TARGET]
    texts = (f"a {target} beside a red square", f"a {target}", f"a blue cross, two {target}, a red cross")
    images, _ = items(1, seed=3, labels=[0, 1, 4])
    inputs = task.inputs(TARGET, retain_images=images, retain_captions=texts)
    request = VlmRequest(inputs, TASK)
    assert request.retained == ([0, 2], ["red square", "blue cross"])
    assert request.n_retained == 2
    alone = replace(inputs, retain_captions=(f"a {target}", f"two {target}", f"the {target}"))
    with pytest.raises(InputError, match="none of 3 retain captions holds the name of a class to keep"):
        _ = VlmRequest(alone, TASK).retained
