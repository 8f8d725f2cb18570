"""Folded erasure on tiny trained models: against the unfolded map, and its invariants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.erasing import mapped
from unlearning import ClipModel, UnlearnInputs, methods, unlearn
from unlearning.curve import CURVE_MULTIPLES
from unlearning.families.clip import tower_of
from unlearning.gradients import load_gradients, save_gradients
from unlearning.inplace import edited
from unlearning.labelled_inputs import input_moments
from unlearning.leace import LabelledMoments, fit_erasure
from unlearning.linear_layers import LinearLayer, linear_layers
from unlearning.request import JOINT

TARGET = 3
TEXT = {"transformer.resblocks.0.attn.out_proj.weight", "text_projection"}
VISION = {
    "ModifiedResNet": {"visual.attnpool.v_proj.weight", "visual.attnpool.c_proj.weight"},
    "VisionTransformer": {"visual.proj"},
}


def state(model: ClipModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def changed(model: ClipModel, before: dict[str, Tensor]) -> set[str]:
    """Names of tensors, buffers included, that are not bit-equal."""
    return {name for name, tensor in model.net.state_dict().items() if not torch.equal(tensor, before[name])}


def kind(model: ClipModel) -> str:
    return type(model.net.visual).__name__


def searched(model: ClipModel, tower: str) -> set[str]:
    """Layers that are searched unless one is named."""
    return VISION[kind(model)] if tower == "vision" else TEXT


def erase_linear(method: Method, **options: Any) -> Method:
    return replace(method, name="erase-linear", options=options)


def silent(what: str, done: int, total: int) -> None:
    pass


def all_moments(model: ClipModel, inputs: UnlearnInputs, micro_batch: int = 16) -> dict[str, LabelledMoments]:
    layers, found = linear_layers(model), {}
    for tower in ("vision", "text"):
        own = [layer for layer in layers if tower_of(layer.weight) == tower]
        found |= input_moments(model, tower, own, inputs, micro_batch, silent)
    return found


def raw_features(model: ClipModel, tower: str, inputs: UnlearnInputs) -> Tensor:
    """Features (n, D) of forget and retain set before they are normalised."""
    with torch.no_grad():
        if tower == "vision":
            parts = (inputs.forget_images, inputs.retain_images)
            return torch.cat([model.net.encode_image(model.preprocess(part)) for part in parts])
        return model.net.encode_text(model.tokenize([*inputs.forget_captions, *inputs.retain_captions]))


def told(x: Tensor, inputs: UnlearnInputs) -> float:
    """Share of "is it a forgotten concept, and which" that the best affine predictor explains, at most 1."""
    own = torch.as_tensor(inputs.forget_labels)[:, None] == torch.tensor(inputs.targets)
    z = torch.cat([own.double(), torch.zeros(len(x) - len(own), own.shape[1])])
    x, z = x.double() - x.double().mean(0), z - z.mean(0)
    # Directions below fp32 rounding of the features are noise to every probe.
    fit = x @ torch.linalg.lstsq(x, z, driver="gelsd", rcond=1e-5).solution
    return float(fit.square().sum() / z.square().sum())


# The unfolded map, written out without any of the method's own ways to reach a layer's input.


def attention(
    attn: nn.MultiheadAttention,
    x: Tensor,
    mask: Tensor | None,
    values: Callable[[Tensor], Tensor],
    joined: Callable[[Tensor], Tensor],
) -> Tensor:
    """Self-attention of (n, L, d) with a map on what the values read, and one on the joined heads."""
    parts = zip(attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3), (x, x, values(x)), strict=True)
    q, k, v = (functional.linear(own, w, b).unflatten(2, (attn.num_heads, -1)) for w, b, own in parts)
    scores = torch.einsum("nihd,njhd->nhij", q, k) * q.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(-1)
    together = torch.einsum("nhij,njhd->nihd", weights, v).flatten(2)
    return functional.linear(joined(together), attn.out_proj.weight, attn.out_proj.bias)


def pooling(
    pool: Any, x: Tensor, values: Callable[[Tensor], Tensor], joined: Callable[[Tensor], Tensor]
) -> Tensor:
    """`AttentionPool2d` of (n, C, H, W) with the same two maps."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + pool.positional_embedding
    q, k, v = pool.q_proj(x[:, :1]), pool.k_proj(x), pool.v_proj(values(x))
    q, k, v = (part.unflatten(2, (pool.num_heads, -1)) for part in (q, k, v))
    weights = (torch.einsum("nihd,njhd->nhij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
    return pool.c_proj(joined(torch.einsum("nhij,njhd->nihd", weights, v).flatten(2)))[:, 0]


@contextmanager
def explicitly(model: ClipModel, layer: LinearLayer, erasure: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The model with the map applied to the layer's input, weights untouched."""
    owner = model.net.get_submodule(layer.weight.rpartition(".")[0])
    own = layer.weight

    def same(x: Tensor) -> Tensor:
        return x

    def first_argument(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if isinstance(module, nn.Conv2d):
            return (erasure(args[0].movedim(1, -1)).movedim(-1, 1),)
        return (erasure(args[0]),)

    if "attnpool" in own:
        pool, maps = model.net.visual.attnpool, (erasure, same) if "v_proj" in own else (same, erasure)
        handle = pool.register_forward_hook(lambda module, args, output: pooling(pool, args[0], *maps))
    elif "attn" in own:
        attn, maps = model.net.get_submodule(own.partition(".attn.")[0] + ".attn"), (same, erasure)
        maps = (erasure, same) if "in_proj" in own else maps
        handle = attn.register_forward_hook(
            lambda module, args, kwargs, output: (
                attention(attn, args[0], kwargs.get("attn_mask"), *maps),
                None,
            ),
            with_kwargs=True,
        )
    elif own in ("visual.proj", "text_projection"):
        norm = model.net.visual.ln_post if own == "visual.proj" else model.net.ln_final
        handle = norm.register_forward_hook(lambda module, args, output: erasure(output))
    else:
        handle = owner.register_forward_pre_hook(first_argument)
    with handle:
        yield


def assert_folding_is_erasing_first(
    model: ClipModel, inputs: UnlearnInputs, layers: list[LinearLayer]
) -> None:
    moments = all_moments(model, inputs)
    for layer in layers:
        tower = tower_of(layer.weight)
        original = raw_features(model, tower, inputs)
        # An exact erasure of these inputs and a strong one: the second moves everything.
        for shrinkage in (0.05, 1.0):
            erasure = fit_erasure(moments[layer.weight], shrinkage, affine=layer.bias is not None)
            with explicitly(model, layer, partial(mapped, erasure)):
                expected = raw_features(model, tower, inputs)
            updates = layer.updates(model.parameters, erasure)
            assert set(updates) == set(layer.tensors)
            with edited(model.parameters, updates):
                folded = raw_features(model, tower, inputs)
            scale = float(expected.abs().max())
            torch.testing.assert_close(folded, expected, rtol=0, atol=2e-5 * scale, msg=layer.weight)
            assert float((expected - original).abs().max()) > 1e-3 * scale, layer.weight


def test_folding_equals_erasing_the_input_in_every_layer(model: ClipModel, task) -> None:
    # Catches a forgotten constant, BatchNorm gain or transposition, value rows mixed up with keys, and a
    # wrong reconstruction of the inputs that torch does not show.
    layers = linear_layers(model)
    names = [layer.weight for layer in layers]
    assert len(names) == len(set(names))
    assert {layer.weight for layer in layers if layer.alone} == VISION[kind(model)] | TEXT
    expected = {"ModifiedResNet": 4 * 3 + 2, "VisionTransformer": 2 * 4 + 1}[kind(model)] + 2 * 4 + 1
    assert len(names) == expected
    assert set(names) <= {c.name for c in model.candidates()}
    assert_folding_is_erasing_first(model, task.inputs(TARGET, 5), layers)


def test_a_text_projection_with_a_bias_takes_the_constant(make_model, vocabulary: bytes, task) -> None:
    config = deepcopy(make_model("vit").config)
    config["model_cfg"]["text_cfg"]["proj_bias"] = True
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = open_clip.model.CLIP(**config["model_cfg"]).state_dict()
    model = ClipModel(config, weights, vocabulary)
    layer = linear_layers(model)[-1]
    assert layer.tensors == ("text_projection.weight", "text_projection.bias")
    assert_folding_is_erasing_first(model, task.inputs(TARGET), [layer])


def test_what_counts_as_a_sample(model: ClipModel, task) -> None:
    # Padding after the end of a text can reach no feature; after the attention only the pooled token can.
    inputs = task.inputs(TARGET)
    moments = all_moments(model, inputs)
    captions = [*inputs.forget_captions, *inputs.retain_captions]
    ends = model.tokenize(captions).argmax(dim=1)
    assert moments["transformer.resblocks.1.attn.in_proj_weight"].n == int((ends + 1).sum())
    for own in ("attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"):
        assert moments[f"transformer.resblocks.0.{own}"].n == len(captions)
    share = len(inputs.forget_images) / len(captions)
    for found in moments.values():
        assert float(found.mean_z[0]) == pytest.approx(share, abs=0.1)


def test_moments_are_those_of_what_the_layer_multiplies(model: ClipModel, task) -> None:
    # Catches a lost causal mask or position, another query of the pooling, tokens that nobody reads.
    inputs = task.inputs(TARGET)
    moments = all_moments(model, inputs)
    ends = model.tokenize([*inputs.forget_captions, *inputs.retain_captions]).argmax(dim=1)
    for layer in linear_layers(model):
        seen: list[Tensor] = []

        def keep(x: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x)
            return x

        tower = tower_of(layer.weight)
        original = raw_features(model, tower, inputs)
        with explicitly(model, layer, keep):
            torch.testing.assert_close(raw_features(model, tower, inputs), original, rtol=1e-4, atol=1e-4)
        x = torch.cat(seen).double()
        if tower == "text" and "in_proj" in layer.weight:
            x = x[torch.arange(x.shape[1]) <= ends[:, None]]
        elif tower == "text":
            x = x[torch.arange(len(x)), ends]
        elif kind(model) == "VisionTransformer" and "in_proj" not in layer.weight:
            x = x[:, 0] if x.ndim == 3 else x
        x = x.flatten(0, -2)
        found, scale = moments[layer.weight], float(x.abs().max())
        assert found.n == len(x), layer.weight
        torch.testing.assert_close(found.mean_x, x.mean(0), rtol=0, atol=1e-5 * scale, msg=layer.weight)
        expected = torch.cov(x.T, correction=0)
        torch.testing.assert_close(
            found.cov_xx, expected, rtol=0, atol=1e-4 * float(expected.abs().max()), msg=layer.weight
        )


@pytest.mark.parametrize("micro_batch", [1, 7])
def test_moments_do_not_depend_on_the_micro_batch(model: ClipModel, task, micro_batch: int) -> None:
    inputs = task.inputs(TARGET, 1)
    whole, parts = all_moments(model, inputs, 1000), all_moments(model, inputs, micro_batch)
    for name, found in parts.items():
        assert found.n == whole[name].n
        for own in ("mean_x", "cov_xx", "cov_xz"):
            scale = float(getattr(whole[name], own).abs().max())
            torch.testing.assert_close(
                getattr(found, own), getattr(whole[name], own), rtol=0, atol=1e-5 * scale, msg=name
            )


@pytest.mark.parametrize("tower", ["vision", "text"])
@pytest.mark.parametrize("targets", [(TARGET,), (0, 3, 5)])
def test_no_linear_probe_finds_the_concepts_in_what_follows_linearly(
    model: ClipModel, task, tower: str, targets: tuple[int, ...]
) -> None:
    layer = {"text": "text_projection", "vision": "visual.proj"}[tower]
    if tower == "vision" and kind(model) == "ModifiedResNet":
        layer = "visual.attnpool.c_proj.weight"
    inputs = task.inputs(*targets)
    assert told(raw_features(model, tower, inputs), inputs) > 0.3
    method = erase_linear(replace(task.method, towers=(tower,)), layer=layer, most=1.0)
    outcome = unlearn(model, inputs, method)
    assert {edit.step_size for edit in outcome.edits} == {1.0}
    assert told(raw_features(model, tower, inputs), inputs) < 0.01


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_the_concept_is_forgotten_and_the_rest_is_kept(model: ClipModel, task, tower: str) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    outcome = unlearn(model, inputs, erase_linear(replace(task.method, towers=(tower,), forget_at=1)))
    assert outcome.reached_target
    original, chosen = outcome.curve[0], outcome.curve[CURVE_MULTIPLES.index(1.0)]
    assert original.forget_rate == 1.0
    assert chosen.forget_rate == 0.0
    assert original.retained_rate is not None
    assert chosen.retained_rate is not None
    # One of 24 (text) or 32 directions is gone, of a model that tells 4 colours and 2 shapes by few of them.
    assert chosen.retained_rate >= 0.7 * original.retained_rate
    assert changed(model, before) == {edit.layer for edit in outcome.edits}
    (weight,) = [edit.layer for edit in outcome.edits if not edit.layer.endswith("bias")]
    assert weight in searched(model, tower)
    assert {edit.tower for edit in outcome.edits} == {t.tower for t in outcome.trials} == {tower}


def test_a_bias_that_changes_is_an_edit_of_its_own(model: ClipModel, task) -> None:
    layer = {
        "ModifiedResNet": ("visual.layer4.0.conv3.weight", "visual.layer4.0.bn3.bias"),
        "VisionTransformer": (
            "visual.transformer.resblocks.1.attn.in_proj_weight",
            "visual.transformer.resblocks.1.attn.in_proj_bias",
        ),
    }[kind(model)]
    inputs, before = task.inputs(TARGET), state(model)
    outcome = unlearn(model, inputs, erase_linear(task.method, layer=layer[0], least=0.5, most=0.5))
    after = state(model)
    assert changed(model, before) == set(layer)
    assert tuple(edit.layer for edit in outcome.edits) == layer
    for edit in outcome.edits:
        assert edit.step_size == 0.5
        assert edit.concepts == (inputs.class_ids[TARGET],)
        change = float((after[edit.layer] - before[edit.layer]).norm() / before[edit.layer].norm())
        assert edit.relative_change == pytest.approx(change, rel=1e-3)
    if "in_proj" in layer[0]:  # queries and keys stay, bit for bit
        rows = 2 * model.net.visual.transformer.width
        assert all(torch.equal(after[name][:rows], before[name][:rows]) for name in layer)


@pytest.mark.parametrize("rule", ["margin", "bisection"])
def test_the_strength_is_the_smallest_tried_that_reaches_the_target(
    model: ClipModel, task, rule: str
) -> None:
    inputs, before = task.inputs(TARGET), state(model)
    method = replace(task.method, towers=("text",), step_rule=rule)
    found = {}
    for least in (1.0, 0.0):
        model.net.load_state_dict(before)
        outcome = unlearn(model, inputs, erase_linear(method, layer="text_projection", least=least))
        assert outcome.reached_target
        strength = outcome.edits[0].step_size
        reaching = [t.step_size for t in outcome.trials if t.forget_rate <= method.forget_target]
        assert strength == min(reaching)
        assert min(t.step_size for t in outcome.trials) >= least
        assert len(outcome.trials) <= method.search_steps
        (kept,) = [t for t in outcome.trials if t.retained_rate is not None]
        assert kept.step_size == strength
        found[least] = strength
    assert 0.0 < found[0.0] <= found[1.0]
    assert found[1.0] >= 1.0


def test_a_target_out_of_reach_is_said_and_the_limit_kept(model: ClipModel, task) -> None:
    inputs = task.inputs(TARGET)
    method = erase_linear(replace(task.method, towers=("text",)), least=0.01, most=0.02)
    outcome = unlearn(model, inputs, method)
    assert not outcome.reached_target
    assert all(0.01 <= t.step_size <= 0.02 for t in outcome.trials)
    assert all(t.forget_rate > 0 for t in outcome.trials)


def test_several_concepts_are_one_joint_erasure(model: ClipModel, task) -> None:
    inputs = task.inputs(0, 3)
    profile = methods.profile(model, inputs, erase_linear(task.method))
    concepts = {inputs.class_ids[0], inputs.class_ids[3]}
    assert set(profile.scores) == concepts
    assert set(profile.directions) == {JOINT}
    update = profile.directions[JOINT]["text_projection"]
    assert int(torch.linalg.matrix_rank(update.double(), rtol=1e-5)) == 2
    # Where no bias can take the constant, the map is the best of those without one.
    bare = fit_erasure(all_moments(model, inputs)["text_projection"], 0.01, affine=False)
    expected, _ = bare.folded(model.parameters["text_projection"].T)
    torch.testing.assert_close(update, expected.T.float(), rtol=1e-3, atol=1e-3)
    for scores in profile.scores.values():
        assert {s.layer for s in scores} == VISION[kind(model)] | TEXT
        assert all(0.0 < s.importance < 1.0 + 1e-9 and s.alignment > 0.0 and s.on_front for s in scores)
    outcome = methods.edit(model, inputs, erase_linear(task.method), profile)
    assert {concept for edit in outcome.edits for concept in edit.concepts} == concepts
    assert {t.concept for t in (*outcome.trials, *outcome.curve)} == {JOINT}


def test_profile_and_edit_can_run_apart_and_give_the_same_bits(model: ClipModel, task, tmp_path) -> None:
    inputs, before, method = task.inputs(1, 4), state(model), erase_linear(task.method)
    together = unlearn(model, inputs, method)
    edited_weights = state(model)
    model.net.load_state_dict(before)
    profile = methods.profile(model, inputs, method)
    assert not changed(model, before)
    save_gradients(profile.directions, tmp_path / "updates.safetensors")
    loaded = replace(profile, directions=load_gradients(tmp_path / "updates.safetensors"))
    assert methods.edit(model, inputs, method, loaded) == together
    assert not changed(model, edited_weights)


@pytest.mark.parametrize("broken_after", [1, 8, 20])
def test_an_exception_leaves_no_bit_and_no_hook_behind(
    model: ClipModel, task, monkeypatch, broken_after: int
) -> None:
    before, seen = state(model), []
    staged, encode = {tower: model.staged(tower) for tower in ("vision", "text")}, model.text_features
    text = staged["text"]

    def breaks(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            seen.append(1)
            if len(seen) > broken_after:
                raise RuntimeError("somebody pulled the plug")
            return run(*args)

        return wrapped

    last = replace(text.stages[-1], run=breaks(text.stages[-1].run))
    staged["text"] = replace(text, stages=(*text.stages[:-1], last))
    monkeypatch.setattr(model, "staged", staged.__getitem__)
    monkeypatch.setattr(model, "text_features", breaks(encode))
    with pytest.raises(RuntimeError, match="plug"):
        unlearn(
            model, task.inputs(TARGET), erase_linear(replace(task.method, towers=("text",), micro_batch=8))
        )
    assert not changed(model, before)
    assert not any(module._forward_hooks for module in model.net.modules())


def test_layers_that_no_erasure_fits_into_are_refused_by_kind(model: ClipModel, task) -> None:
    inputs, method = task.inputs(TARGET), task.method
    refused = {
        "visual.conv1.weight": "of a Conv2d",
        "transformer.resblocks.0.ln_1.weight": "of a LayerNorm",
        "ln_final.weight": "of a LayerNorm",
        "transformer.resblocks.0.mlp.c_fc.bias": "of a Linear",
        "logit_scale": "of a CLIP",
    }
    if kind(model) == "ModifiedResNet":
        refused |= {
            "visual.layer2.0.conv2.weight": r"weight \(16, 16, 3, 3\) of a Conv2d",
            "visual.layer2.0.bn1.weight": "of a BatchNorm2d",
            "visual.attnpool.k_proj.weight": "of a Linear",
        }
    for layer, said in refused.items():
        with pytest.raises(InputError, match=said) as raised:
            methods.profile(model, inputs, erase_linear(method, layer=layer))
        assert not any(name in str(raised.value) for name in inputs.class_names)
    with pytest.raises(InputError, match=r"no weight 'visual\.nothing\.weight'"):
        methods.profile(model, inputs, erase_linear(method, layer="visual.nothing.weight"))
    vision = replace(method, towers=("vision",))
    with pytest.raises(InputError, match="not in the tower asked for, vision"):
        methods.profile(model, inputs, erase_linear(vision, layer="text_projection"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shrinkage": 1.5}, "shrinkage must be at least 0 and at most 1, got 1.5"),
        ({"least": -1.0}, "least must be at least 0, got -1.0"),
        ({"least": float("inf")}, "least must be finite and at least 0"),
        ({"most": 0.5}, r"most must be at least 1, got 0\.5"),
        ({"strength": 1.0}, "strength"),
    ],
)
def test_options_out_of_range_are_refused(
    model: ClipModel, task, options: dict[str, float], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        methods.profile(model, task.inputs(TARGET), erase_linear(task.method, **options))


def test_a_profile_of_other_concepts_is_refused(model: ClipModel, task) -> None:
    profile = methods.profile(model, task.inputs(TARGET), erase_linear(task.method))
    before = state(model)
    for other in (task.inputs(2), task.inputs(TARGET, 2)):
        with pytest.raises(InputError, match="other concepts"):
            methods.edit(model, other, erase_linear(task.method), profile)
    assert not changed(model, before)


def test_a_layer_that_does_not_tell_the_concept_is_not_edited(model: ClipModel, task) -> None:
    # All captions enter the layer alike: there is nothing to erase, which is no reason to amplify rounding.
    inputs = task.inputs(TARGET)
    with torch.no_grad():
        model.net.positional_embedding.zero_()  # nor of how long it is
        for block in model.net.transformer.resblocks:
            block.attn.out_proj.weight.zero_()  # the end token never hears of the caption
    method = erase_linear(
        replace(task.method, towers=("text",)), layer="transformer.resblocks.1.mlp.c_proj.weight"
    )
    profile = methods.profile(model, inputs, method)
    (score,) = profile.scores[inputs.class_ids[TARGET]]
    assert not score.on_front
    with pytest.raises(ModelError, match="no layer"):
        methods.edit(model, inputs, method, profile)


def test_progress_counts_every_part_to_its_end(model: ClipModel, task) -> None:
    told_of: dict[str, list[tuple[int, int]]] = {}

    def listen(what: str, done: int, total: int) -> None:
        told_of.setdefault(what, []).append((done, total))

    unlearn(model, task.inputs(TARGET), erase_linear(task.method), listen)
    assert set(told_of) == {"layer inputs", "step search", "curve"}
    assert all(calls[-1][0] == calls[-1][1] for calls in told_of.values())
