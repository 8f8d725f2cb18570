"""uce-cross-attention: the closed form against an oracle, its anchors, and a block that is drawn no more."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.diffusion_trained import BLOCKS, GROUNDS, METHOD, TEMPLATES, prompts, request, trained
from tests.unlearning.families.conftest import diffusion
from unlearning import methods
from unlearning.attempts import Attempt, Judge
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import CROSS_ATTENTION, DiffusionModel
from unlearning.families.diffusion_request import DiffusionRequest
from unlearning.forgetting import Forgetting
from unlearning.inplace import edited
from unlearning.least_squares import duals
from unlearning.methods import uce_cross_attention
from unlearning.methods.uce_cross_attention import Options, turns_by_place
from unlearning.text_readers import text_inputs

RUBY = 0
NAMES = (*BLOCKS, "coal")
CONTEXTS = tuple(f"{template}, {ground} style" for template in TEMPLATES[:2] for ground in GROUNDS)


def asked(**changes: Any) -> DiffusionRequest:
    return request(class_names=NAMES, contexts=CONTEXTS, **changes)


def told(**options: Any) -> Method:
    return replace(METHOD, name="uce-cross-attention", towers=("unet",), options=options)


def silent(what: str, done: int, total: int) -> None:
    """Nothing is told."""


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return trained()


def shown(model: DiffusionModel, target: int = RUBY) -> dict[str, float]:
    """Share of pictures of unheard prompts whose block the judge names: of the target, and of the others."""
    split = request(search=prompts(TEMPLATES[2], range(100, 103))).search_split(model, METHOD)
    hits = split.known.own.argmax(1) == split.labels
    own = split.labels == target
    return {"target": float(hits[own].float().mean()), "others": float(hits[~own].float().mean())}


def test_duals_give_the_damped_least_squares_answer() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, kept, wanted = (
        torch.randn(n, d, dtype=torch.float64, generator=generator) for n, d in ((4, 9), (30, 9), (4, 5))
    )
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
    retained = kept.T @ kept / 30
    damping = 0.02 * float(retained.diagonal().mean())
    change = wanted.T @ duals(keys, weights, retained, 0.02)
    rows = torch.cat(
        [weights.sqrt()[:, None] * keys, kept / 30**0.5, damping**0.5 * torch.eye(9, dtype=torch.float64)]
    )
    values = torch.cat([weights.sqrt()[:, None] * wanted, torch.zeros(39, 5, dtype=torch.float64)])
    torch.testing.assert_close(change.T, torch.linalg.lstsq(rows, values).solution)


def test_moments_that_damping_does_not_make_definite_are_refused() -> None:
    along, weights = torch.tensor([[1.0, 2.0, -1.0]]), torch.ones(1)
    with pytest.raises(ModelError, match="not positive definite: raise the damping"):
        duals(along, weights, along.T @ along, 1e-12)
    assert torch.isfinite(duals(along, weights, along.T @ along, 1e-2)).all()
    assert not torch.isfinite(duals(along, weights, torch.full((3, 3), torch.nan), 1e-2)).any()


def test_what_enters_the_first_readers_is_what_the_unet_gives_them(model: DiffusionModel) -> None:
    # The oracle runs the whole UNet, on noise that must not matter.
    conditioning = model.conditioning(model.tokenize(["a ruby, moss style", "this jade"]))
    found = text_inputs(model, conditioning)
    names = [name for readers in found for name in readers]
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in names} == {
        "to_k",
        "to_v",
        "k_proj",
        "v_proj",
        "q_proj",
    }
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.net.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0]})
        )
        for name in names
    ]
    latents = torch.randn(2, *model.codec.shape(model.image_size))
    model.predict(latents, torch.tensor([3, 700]), conditioning)
    for handle in handles:
        handle.remove()
    for readers, rows in found.items():
        for name in readers:
            torch.testing.assert_close(rows, seen[name].reshape(-1, rows.shape[1]), atol=1e-5, rtol=1e-5)


def test_the_pooled_feature_of_sdxl_is_read_first_by_one_matrix(make_model: Any) -> None:
    clip: ClipModel = make_model("vit")
    width = clip.config["model_cfg"]["embed_dim"]
    unet = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": width + 6 * 8,
    }
    reads = [
        {
            "blocks": clip.config["model_cfg"]["text_cfg"]["layers"],
            "normed": False,
            "pooled": True,
            "padding": 0,
        }
    ]
    model = diffusion(clip, reads=reads, unet=unet)
    found = text_inputs(model, model.conditioning(model.tokenize(["a", "b c", "d"])))
    assert list(found)[1:] == [("unet.add_embedding.linear_1.weight",)]
    assert found[("unet.add_embedding.linear_1.weight",)].shape == (3, width + 6 * 8)


def test_a_turn_leads_the_concepts_states_to_the_anchors_and_leaves_others(model: DiffusionModel) -> None:
    request = asked()
    turns = turns_by_place(model, request, Options(epsilon=1e-6), 4, silent)
    assert len(turns) == 3  # as many as there are other blocks

    def rows(name: str) -> dict[tuple[str, ...], torch.Tensor]:
        texts = [context.replace("{}", name) for context in CONTEXTS]
        return text_inputs(model, model.conditioning(model.tokenize(texts)))

    gone = rows("ruby")
    for readers, states in gone.items():
        moved = states.double() @ turns[0][readers].T
        others = {name: rows(name)[readers].double() for name in BLOCKS if name != "ruby"}
        left = [(own - states - moved).norm() / (own - states).norm() for own in others.values()]
        kept = max(float((own @ turns[0][readers].T).norm()) for own in others.values())
        assert min(left) < 0.5
        assert kept < 0.5 * float(moved.norm())


def test_anchors_come_nearest_first(model: DiffusionModel) -> None:
    lengths = [
        sum(float(turn.norm()) for turn in turns.values())
        for turns in turns_by_place(model, asked(), Options(), 4, silent)
    ]
    assert lengths[0] == min(lengths)
    nearest = turns_by_place(model, asked(), Options(anchors=1), 4, silent)
    assert len(nearest) == 1


@pytest.mark.parametrize("micro_batch", [1, 64])
def test_the_turns_do_not_depend_on_the_micro_batch(model: DiffusionModel, micro_batch: int) -> None:
    first = turns_by_place(model, asked(), Options(anchors=1), 7, silent)[0]
    other = turns_by_place(model, asked(), Options(anchors=1), micro_batch, silent)[0]
    for readers, turn in first.items():
        torch.testing.assert_close(turn, other[readers], atol=1e-3, rtol=1e-3)


def test_a_block_is_forgotten_in_unheard_prompts_and_only_readers_of_texts_change() -> None:
    model = trained()
    before = {name: weight.clone() for name, weight in model.net.state_dict().items()}
    known = shown(model)
    outcome = methods.unlearn(model, asked(), told())
    after = model.net.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    readers = text_inputs(model, model.conditioning(model.tokenize(["a"])))
    assert changed == {edit.layer for edit in outcome.edits} == {n for names in readers for n in names}
    assert outcome.reached_target
    found = shown(model)
    assert known["target"] > 0.6
    assert found["target"] < 0.2
    assert found["others"] > known["others"] - 0.25  # a linear map of states that are 32 wide


def test_keys_and_values_alone_leave_the_block_to_the_embedding_of_the_text() -> None:
    # The negative control: this UNet reads the text by a second way.
    model = trained()
    known = shown(model)["target"]
    turns = turns_by_place(model, asked(), Options(), 8, silent)[0]
    keys_and_values = next(readers for readers in turns if readers[0].endswith(CROSS_ATTENTION))
    updates = {
        layer: (model.parameters[layer].double() @ turns[keys_and_values]).float()
        for layer in keys_and_values
    }
    with edited(model.parameters, updates):
        assert shown(model)["target"] > 0.5 * known


def test_the_nearest_anchor_that_hides_the_block_and_keeps_the_others_is_taken() -> None:
    model = trained()
    outcome = methods.unlearn(model, asked(), told())
    sizes = [trial.step_size for trial in outcome.trials]
    assert sizes == [float(i + 1) for i in range(len(sizes))]
    assert outcome.edits[0].step_size in sizes
    original = outcome.curve[0].retained_rate
    assert original is not None
    for trial in outcome.trials[:-1]:  # otherwise the search would have ended there
        assert trial.forget_rate > 0 or (trial.retained_rate or 0.0) < original


def test_the_weights_of_the_best_anchor_alone_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each keeps less than the one before and none reaches the target: all are tried, the first is the best.
    kept = iter([0.9, 0.8, 0.7])
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    attempt = uce_cross_attention.try_each

    def listening(*told: Any) -> list[Attempt]:
        found = attempt(*told)
        made.extend(weakref.ref(next(iter(one.weights.values()))) for one in found)
        alive.append(sum(weight() is not None for weight in made))
        return found

    monkeypatch.setattr(uce_cross_attention, "try_each", listening)
    seen = Forgetting({RUBY: 1.0}, 1.0, 0.0, 0.0)
    monkeypatch.setattr(Judge, "both", lambda judge: (seen, next(kept)))
    outcome = methods.unlearn(trained(), asked(), told())
    assert [trial.retained_rate for trial in outcome.trials] == [0.9, 0.8, 0.7]
    assert {edit.step_size for edit in outcome.edits} == {1.0}
    assert [point.step_size for point in outcome.curve] == [0.0, 1.0]
    assert alive == [1, 2, 2]


@pytest.mark.parametrize(
    ("options", "problem"),
    [({"weight": 0.0}, "weight"), ({"epsilon": -1.0}, "epsilon"), ({"anchors": 0}, "anchors")],
)
def test_options_out_of_their_range_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        methods.check(told(**options), 5, "diffusion")


def test_what_cannot_be_rewritten_is_refused_and_leaves_the_weights(model: DiffusionModel) -> None:
    before = {name: weight.clone() for name, weight in model.net.state_dict().items()}
    with pytest.raises(InputError, match="no caption of the request names its class"):
        methods.unlearn(model, request(), told())
    with pytest.raises(InputError, match="matrices of the unet"):
        methods.unlearn(model, asked(), replace(told(), towers=("text",)))
    with pytest.raises(InputError, match="contexts take 5 class names, got 0"):
        request(contexts=CONTEXTS)
    layer = "clip.ln_final.weight"
    with (
        edited(model.parameters, {layer: torch.full_like(model.parameters[layer], float("nan"))}),
        pytest.raises(ModelError, match="not finite"),
    ):
        turns_by_place(model, asked(), Options(), 8, silent)
    assert all(torch.equal(before[name], weight) for name, weight in model.net.state_dict().items())
