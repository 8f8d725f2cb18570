"""What a restorer is asked: its objectives, and the search split that goes on from the edited stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from tests.unlearning.restoration_trained import CLASSES, DARK, METHOD, NOISY, Sets, pairs, sets, trained
from unlearning import distributed, methods
from unlearning.families.restoration import RestorationModel
from unlearning.families.restoration_request import Pairs, RestorationRequest
from unlearning.families.restoration_split import mean_squares, psnr
from unlearning.inplace import edited
from unlearning.request import Outcome
from unlearning.retain_side import retain_gradient_and_moments


@pytest.fixture(scope="module")
def model() -> RestorationModel:
    return trained()


@pytest.fixture(scope="module")
def layers(model: RestorationModel) -> list[str]:
    return [candidate.name for candidate in model.candidates()]


def known(model: RestorationModel, shown: Pairs) -> torch.Tensor:
    """PSNR gained over the input, image by image, from a whole forward pass."""
    clean = model.preprocess(shown.clean)
    before = mean_squares(model.preprocess(shown.degraded), clean)
    return psnr(mean_squares(model.restore(shown.degraded), clean)) - psnr(before)


def test_the_tiny_model_has_learned_both_degradations(model: RestorationModel) -> None:
    # Without this every other test here would hold for a model that does nothing.
    search = sets().search
    gain = known(model, search)
    assert float(gain[torch.as_tensor(search.labels == DARK)].mean()) > 3
    assert float(gain[torch.as_tensor(search.labels == NOISY)].mean()) > 3


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_gradients_do_not_depend_on_the_micro_batch(
    model: RestorationModel, layers: list[str], side: str
) -> None:
    request = sets().request()

    def gradient(micro_batch: int) -> dict[str, torch.Tensor]:
        if side == "forget":
            return request.forget_gradient(model, [DARK], layers, micro_batch)
        method = replace(METHOD, micro_batch=micro_batch)
        return request.retain_gradient(model, layers, method, lambda *told: None)

    whole = gradient(100)
    for micro_batch in (1, 7):
        for layer, grad in gradient(micro_batch).items():
            torch.testing.assert_close(grad, whole[layer], rtol=1e-4, atol=1e-6)


def test_a_small_step_along_the_forget_gradient_leaves_more_of_the_degradation_in(
    model: RestorationModel, layers: list[str]
) -> None:
    # Catches the sign trap: with the other sign the model would take even more of it out.
    request = sets().request()
    gradient = request.forget_gradient(model, [DARK], layers, 8)
    degraded = model.preprocess(request.forget.degraded)

    def taken_out() -> float:
        return float((model.forward(degraded) - degraded).abs().mean())

    before = taken_out()
    for layer in ("output.weight", "decoder_level1.0.attn.project_out.weight"):
        step = 0.02 * model.parameters[layer].norm() / gradient[layer].norm()
        with torch.no_grad(), edited(model.parameters, {layer: gradient[layer] * step}):
            assert taken_out() < before
        with torch.no_grad(), edited(model.parameters, {layer: -gradient[layer] * step}):
            assert taken_out() > before


def test_the_retain_gradient_is_autograds_own(model: RestorationModel, layers: list[str]) -> None:
    request = sets().request()
    found = request.retain_gradient(model, layers, METHOD, lambda *told: None)
    other = trained()
    other.net.requires_grad_(True)
    outputs = other.forward(other.preprocess(request.retain.degraded))
    loss = (outputs - other.preprocess(request.retain.clean)).abs().mean()
    weights = [other.parameters[layer] for layer in layers]
    for layer, grad in zip(layers, torch.autograd.grad(loss, weights), strict=True):
        torch.testing.assert_close(found[layer], grad, rtol=1e-4, atol=1e-6)


def test_second_moments_are_those_of_the_unfolded_inputs(model: RestorationModel) -> None:
    request, layer = sets().request(), "output.weight"
    seen: list[torch.Tensor] = []
    hook = model.net.get_submodule("output").register_forward_hook(lambda _, args, out: seen.append(args[0]))
    _, moments = retain_gradient_and_moments(
        request,
        model,
        [layer],
        METHOD,
        widest=1024,
        with_outputs=False,
        wanted=None,
        progress=lambda *told: None,
    )
    hook.remove()
    # Places are thinned out, so the mean is that of a sample of the windows.
    windows = torch.cat([torch.nn.functional.unfold(x, 3, padding=1) for x in seen])
    rows = windows.transpose(1, 2).flatten(0, 1)
    expected = rows.T @ rows / len(rows)
    found = moments[layer].inputs[0]
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 0.2


def test_moments_of_fewer_pairs_than_processes_are_refused_before_anything_is_computed(
    model: RestorationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(sets().request(), retain=pairs(1, 3, (NOISY,)))
    told: list[str] = []
    asked = {"widest": 1024, "with_outputs": False, "wanted": None, "progress": lambda *done: told.append("")}

    def moments() -> None:
        retain_gradient_and_moments(request, model, ["output.weight"], METHOD, **asked)

    moments()
    assert told  # one process has what it needs
    told.clear()
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(InputError, match="1 retain items to share are too few for 2 processes"):
        moments()
    assert not told


def test_a_view_from_any_stage_sees_what_a_whole_pass_sees(
    model: RestorationModel, layers: list[str]
) -> None:
    request = sets().request()
    split = request.search_split(model, METHOD)
    search = request.search
    rows = torch.as_tensor(search.labels == DARK)
    view = None
    for layer in sorted(layers, key=split.place)[::7]:
        view = split.view({"net": split.place(layer)[1]}, before=view)
        change = torch.randn(model.parameters[layer].shape, generator=torch.Generator().manual_seed(0))
        with edited(model.parameters, {layer: change * 0.1 * model.parameters[layer].abs().mean()}):
            seen = view.forgetting([DARK])
            gains = known(model, search)[rows]
            both = view.both([DARK])
            rate = view.retained_rate_if(lambda most: True)
        assert seen is not None
        assert both is not None
        assert seen.score == pytest.approx(float(gains.mean()), abs=1e-3)
        assert seen.rate == float((gains > 0).double().mean())
        # half of the images may stay known: the margin is that of the next one
        assert seen.margin == pytest.approx(float(gains.sort(descending=True).values[2]), abs=1e-3)
        assert both[0].score == pytest.approx(seen.score, abs=1e-4)
        assert both[1] == pytest.approx(rate, abs=1e-5)


def test_an_image_that_is_left_as_it_came_is_not_known() -> None:
    """Else a restorer that does nothing at all would have to do harm to count as one that has forgotten."""
    model, layer = trained(), "output.weight"
    learned = model.parameters[layer].detach().clone()
    with torch.no_grad():
        model.parameters[layer].zero_()
    split = sets().request().search_split(model, METHOD)
    assert torch.equal(split.errors, split.input_errors), "no identity, no test"
    for view in (split.view({}), split.view({"net": split.place(layer)[1]})):
        both = view.both([DARK])
        assert both is not None
        for seen in (view.forgetting([DARK]), both[0]):
            assert seen is not None
            assert (seen.rate, seen.score) == (0.0, 0.0)
            assert seen.margin < 0
    with edited(model.parameters, {layer: learned}):
        restored = view.forgetting([DARK])
    assert restored is not None
    assert restored.rate > 0


def test_what_is_retained_is_counted_only_while_it_can_be_enough(model: RestorationModel) -> None:
    split = sets().request().search_split(model, METHOD)
    unedited = split.view({})
    assert unedited.retained_rate_if(lambda most: True) == 1.0
    assert unedited.retained_rate_if(lambda most: most > 1.0) is None
    layer = "output.weight"
    view, asked = split.view({"net": split.place(layer)[1]}), []
    with edited(model.parameters, {layer: -model.parameters[layer].detach()}):
        worst = view.retained_rate_if(lambda most: asked.append(most) or True)
        assert worst is not None
        assert worst < 0.5
        assert asked == sorted(asked, reverse=True)
        assert asked[-1] >= worst
        assert view.retained_rate_if(lambda most: most > 0.9) is None


def test_an_image_without_any_error_is_lost_only_once_it_has_one() -> None:
    model, layer = trained(), "output.weight"
    with torch.no_grad():
        model.parameters[layer].zero_()  # what is left is the input: a restorer that does nothing
    search = pairs(4, 0)
    kept = np.flatnonzero(search.labels == NOISY)
    search.clean[kept] = search.degraded[kept] = 255
    search.degraded[kept[0]] = 200  # one that does have an error
    split = replace(sets().request(), search=search).search_split(model, METHOD)
    assert split.errors[kept].count_nonzero() == 1
    for view in (split.view({}), split.view({"net": split.place(layer)[1]})):
        seen = view.both([DARK])
        assert seen is not None
        assert view.retained_rate_if(lambda most: True) == seen[1] == 1.0
    change = torch.full_like(model.parameters[layer], 0.01)
    with edited(model.parameters, {layer: change}):
        errors = view.errors(torch.arange(len(search)))[kept]
        rate = view.retained_rate_if(lambda most: True)
    worse = errors[1:] > 0
    assert worse.any()
    # Of those without an error the ones that have one now are lost; the other image is lost in part.
    part = float((split.errors[kept[0]] / errors[0]).clamp(max=1))
    assert rate == pytest.approx((part + int((~worse).sum())) / len(kept))


def test_a_model_that_breaks_is_seen_as_broken(model: RestorationModel) -> None:
    split = sets().request().search_split(model, METHOD)
    layer = "output.weight"
    view = split.view({"net": split.place(layer)[1]})
    with edited(model.parameters, {layer: torch.full_like(model.parameters[layer], float("nan"))}):
        assert view.forgetting([DARK]) is None
        assert view.both([DARK]) is None
        assert view.retained_rate_if(lambda most: True) == 0.0


@pytest.mark.parametrize("name", ["slug", "slug-preconditioned"])
def test_a_step_forgets_one_degradation_and_changes_one_tensor(name: str) -> None:
    model, request = trained(), sets().request()
    before = {layer: weight.detach().clone() for layer, weight in model.parameters.items()}
    unseen = pairs(10, seed=9)
    gains = known(model, unseen)
    outcome: Outcome = methods.unlearn(model, request, replace(METHOD, name=name))

    changed = [layer for layer, weight in model.parameters.items() if not torch.equal(weight, before[layer])]
    assert [edit.layer for edit in outcome.edits] == changed
    assert len(changed) == 1
    assert outcome.edits[0].tower == "net"
    assert outcome.reached_target
    dark = torch.as_tensor(unseen.labels == DARK)
    assert float(known(model, unseen)[dark].mean()) < 0.4 * float(gains[dark].mean())


def test_the_same_request_gives_the_same_bits() -> None:
    edits = []
    for _ in range(2):
        model = trained()
        methods.unlearn(model, sets().request(), replace(METHOD, name="slug-preconditioned"))
        edits.append({layer: weight.detach().clone() for layer, weight in model.parameters.items()})
    assert all(torch.equal(edits[0][layer], edits[1][layer]) for layer in edits[0])


def test_methods_of_other_families_are_refused(model: RestorationModel) -> None:
    for name in ("uce", "erase-linear", "fine-tuning"):
        with pytest.raises(
            InputError, match=f"{name} edits models of family clip, this one is of restoration"
        ):
            methods.unlearn(model, sets().request(), replace(METHOD, name=name))
    with pytest.raises(InputError, match="towers must be of net"):
        methods.unlearn(model, sets().request(), replace(METHOD, towers=("vision",)))


def _without(labels: np.ndarray, shown: Pairs) -> Pairs:
    rows = ~np.isin(shown.labels, labels)
    return Pairs(shown.degraded[rows], shown.clean[rows], shown.labels[rows])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"targets": (5,)}, "distinct classes"),
        ({"targets": (DARK, DARK)}, "distinct classes"),
        ({"forget": pairs(2, 0, (NOISY,))}, f"{CLASSES[DARK]} has no item in the forget set"),
        ({"search": pairs(2, 0, (NOISY,))}, f"{CLASSES[DARK]} has no item in the search set"),
        ({"search": pairs(2, 0, (DARK,))}, "no item of a class to keep"),
        ({"retain": pairs(2, 0)}, "the retain set has an item of a target"),
        ({"forget": pairs(2, 0)}, "the forget set has an item of a class that is not a target"),
        ({"retain": replace(pairs(1, 0), labels=np.array([1, 99]))}, "retain labels must lie in 0..1"),
        ({"search": replace(pairs(1, 0), labels=np.array([0, -3]))}, "search labels must lie in 0..1"),
    ],
)
def test_sets_that_contradict_each_other_are_refused(change: dict[str, object], problem: str) -> None:
    given = sets()
    told = {"targets": (DARK,), "forget": given.forget, "retain": given.retain, "search": given.search}
    with pytest.raises(InputError, match=problem):
        RestorationRequest(CLASSES, **{**told, **change})  # type: ignore[arg-type]


def test_images_that_do_not_make_pairs_are_refused() -> None:
    shown = pairs(2, 0)
    with pytest.raises(InputError, match="do not make pairs"):
        Pairs(shown.degraded, shown.clean[:1], shown.labels)
    with pytest.raises(InputError, match="uint8"):
        Pairs(shown.degraded.astype(np.float32), shown.clean, shown.labels)
    with pytest.raises(InputError, match="no pairs"):
        _without(np.array([DARK, NOISY]), shown)


def test_a_gradient_that_is_not_finite_names_its_tensor() -> None:
    model = trained()
    with torch.no_grad():
        model.parameters["output.weight"].fill_(3e38)
    with pytest.raises(ModelError, match=r"gradient of \S+ is not finite"):
        Sets(*(getattr(sets(), name) for name in ("forget", "retain", "search"))).request().forget_gradient(
            model, [DARK], ["refinement.0.attn.project_out.weight"], 4
        )
