"""Second moments against a computation of their own for every kind of layer, with module hooks and loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from contracts.errors import InputError, ModelError
from unlearning import moments_collector
from unlearning.encoders import Compute
from unlearning.families.clip import ClipModel
from unlearning.gradients import retain_gradient
from unlearning.moment_sums import MatrixForm, Moments
from unlearning.moments import part_sums, retain_gradient_and_sums
from unlearning.moments_graph import uses
from unlearning.objectives import retain_loss

RETAIN_BATCH = 15


BF16 = Compute(torch.bfloat16)


def layers_of(model: ClipModel) -> list[str]:
    return [c.name for c in model.candidates()]


def measure(model: ClipModel, task, micro_batch: int = 1000, **options) -> dict[str, Moments]:
    inputs = task.inputs(2)
    _, sums = retain_gradient_and_sums(
        model,
        inputs.retain_images,
        inputs.retain_captions,
        layers_of(model),
        retain_batch=RETAIN_BATCH,
        micro_batch=micro_batch,
        seed=0,
        **options,
    )
    return {layer: own.mean() for layer, own in sums.items()}


@pytest.fixture(params=["vit", "rn"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_collector, "ROWS_PER_INPUT", 10**9)


def attended(queries: Tensor, keys: Tensor, values: Tensor, n_heads: int, mask: Tensor | None) -> Tensor:
    """Multi-head attention before its output projection, (N, T, W) each."""
    q, k, v = (x.unflatten(-1, (n_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


class Witness:
    """What enters every layer and the loss's gradient at what leaves it, by hooks on open_clip's modules.

    `inputs` (N, T, n) by layer; `gradients` (N, T, o) for layers that are called as modules.
    """

    def __init__(self, model: ClipModel) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.mask = model.net.attn_mask
        for name, module in model.net.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(self._attention(name), with_kwargs=True)
            elif name == "visual.attnpool":
                module.register_forward_pre_hook(self._pool)
            elif isinstance(module, nn.Linear | nn.Conv2d) and "attn" not in name:
                module.register_forward_hook(self._called(name))
        model.net.ln_final.register_forward_hook(lambda m, a, out: self.inputs.update(ln_final=out))
        if hasattr(model.net.visual, "ln_post"):
            model.net.visual.ln_post.register_forward_hook(lambda m, a, out: self.inputs.update(ln_post=out))

    def _called(self, name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            x = args[0]
            if isinstance(module, nn.Conv2d):
                windows = functional.unfold(
                    x, module.kernel_size, module.dilation, module.padding, module.stride
                )
                x = windows.transpose(1, 2)
            self.inputs[f"{name}.weight"], self.outputs[f"{name}.weight"] = x, out

        return hook

    def _attention(self, name: str):
        def hook(module: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict) -> None:
            x = args[0]
            projected = functional.linear(x, module.in_proj_weight, module.in_proj_bias)
            n = x.shape[1]  # an empty text is shorter than the mask
            mask = None if name.startswith("visual.") else self.mask[:n, :n]
            self.inputs[f"{name}.in_proj_weight"] = x
            self.inputs[f"{name}.out_proj.weight"] = attended(
                *projected.chunk(3, dim=-1), module.num_heads, mask
            )

        return hook

    def _pool(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        tokens = args[0].flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + module.positional_embedding
        q, k, v = (getattr(module, f"{part}_proj") for part in "qkv")
        for part in "qkv":
            self.inputs[f"visual.attnpool.{part}_proj.weight"] = tokens
        pooled = attended(q(tokens), k(tokens), v(tokens), module.num_heads, None)
        self.inputs["visual.attnpool.c_proj.weight"] = pooled


def expected(model: ClipModel, task) -> dict[str, tuple[Tensor, int, Tensor | None]]:
    """By layer: mean of a a^T, rows, and mean of g g^T where the layer is called as a module."""
    inputs = task.inputs(2)
    witness = Witness(model)
    tokens = model.tokenize(inputs.retain_captions)
    ends = tokens.argmax(1)
    places = torch.arange(tokens.shape[1])
    up_to_end, at_end = places <= ends[:, None], places == ends[:, None]
    model.net.requires_grad_(True)
    image = model.image_features(model.preprocess(inputs.retain_images))
    text = functional.normalize(model.net.encode_text(tokens), dim=-1)
    order = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))
    batches = order.split(RETAIN_BATCH)
    loss = sum(retain_loss(image[b], text[b], model.logit_scale) for b in batches) / len(batches)
    called = list(witness.outputs)
    gradients = dict(zip(called, torch.autograd.grad(loss, list(witness.outputs.values())), strict=True))
    model.net.requires_grad_(False)

    found = {}
    for layer, x in witness.inputs.items():
        last = ".1.attn.out_proj" in layer or ".1.mlp" in layer
        if layer == "ln_final":
            layer, x, keep = "text_projection", x, at_end
        elif layer == "ln_post":
            layer, keep = "visual.proj", torch.arange(x.shape[1]).expand(len(x), -1) == 0
        elif "conv" in layer or "downsample" in layer:
            keep = (gradients[layer] != 0).any(1).flatten(1)
        elif "attnpool.c" in layer or "attnpool.q" in layer or (layer.startswith("visual.") and last):
            keep = torch.arange(x.shape[1]).expand(len(x), -1) == 0
        elif layer.startswith("visual."):
            keep = torch.ones(x.shape[:2], dtype=torch.bool)
        else:
            keep = at_end if last else up_to_end
        if x.ndim == 2:
            x = x[:, None]
        rows = x[keep[:, : x.shape[1]]].double()
        outer = None
        if layer in gradients:
            g = gradients[layer]
            g = (g.flatten(2).transpose(1, 2) if g.ndim == 4 else g)[keep].double()
            outer = g.T @ g / len(g)
        found[layer] = (rows.T @ rows / len(rows), len(rows), outer)
    return found


def assert_close(one: Tensor, other: Tensor, layer: str, tolerance: float = 1e-4) -> None:
    atol = tolerance * float(other.detach().abs().max())
    torch.testing.assert_close(one.double(), other.detach().double(), atol=atol, rtol=tolerance, msg=layer)


def test_moments_are_those_of_a_plain_computation_for_every_kind_of_layer(
    model: ClipModel, task, every_place
) -> None:
    # Catches padding counted as text, tokens of the last block that nothing reads, and a wrong orientation.
    measured = measure(model, task, micro_batch=7, with_outputs=True)
    wanted = expected(model, task)
    assert set(measured) == {c.name for c in model.candidates() if len(c.shape) > 1}
    assert set(measured) <= set(wanted)
    for layer, moments in measured.items():
        inputs, rows, outputs = wanted[layer]
        assert moments.rows == rows, layer
        assert_close(moments.inputs[0], inputs, layer)
        assert moments.outputs is not None
        if outputs is not None:
            assert_close(moments.outputs[0], outputs, layer, 1e-3)
        matrix = moments.form.as_matrix(model.parameters[layer])
        assert matrix.shape == (1, moments.outputs.shape[-1], moments.inputs.shape[-1]), layer
        assert torch.equal(
            moments.form.as_weight(matrix, model.parameters[layer].shape), model.parameters[layer]
        )
    assert any(outputs is not None for _, _, outputs in wanted.values())


@pytest.mark.parametrize("micro_batch", [1, 7])
def test_moments_do_not_depend_on_the_micro_batch(model: ClipModel, task, micro_batch: int) -> None:
    # Also of the sampled places: catches a sample that begins anew in each micro-batch.
    pieces = measure(model, task, micro_batch, with_outputs=True)
    whole = measure(model, task, with_outputs=True)
    assert list(pieces) == list(whole)
    largest = max(float(m.outputs.abs().max()) for m in whole.values())
    for layer, moments in whole.items():
        assert pieces[layer].rows == moments.rows, layer
        assert_close(pieces[layer].inputs, moments.inputs, layer)
        # Output gradients that cancel keep the rounding error of their terms.
        torch.testing.assert_close(pieces[layer].outputs, moments.outputs, atol=1e-6 * largest, rtol=1e-2)


def test_the_gradient_that_comes_along_is_the_retain_gradient(model: ClipModel, task) -> None:
    inputs, layers = task.inputs(2), layers_of(model)
    arguments = (model, inputs.retain_images, inputs.retain_captions, layers)
    options = {"retain_batch": RETAIN_BATCH, "micro_batch": 4, "seed": 0}
    gradient, _ = retain_gradient_and_sums(*arguments, **options)
    alone = retain_gradient(*arguments, **options)
    assert all(torch.equal(gradient[layer], alone[layer]) for layer in layers)
    assert not any(p.requires_grad for p in model.net.parameters())


def far(one: Tensor, other: Tensor) -> float:
    """Relative to the length of the other."""
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("micro_batch", [7, 1000])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_moments_under_autocast_are_those_of_fp32_but_for_rounding(
    make_model, task, kind: str, micro_batch: int, checkpointing: bool
) -> None:
    model = make_model(kind)
    exact = measure(model, task, with_outputs=True)
    rounded = measure(
        model, task, micro_batch, with_outputs=True, compute=Compute(torch.bfloat16, checkpointing)
    )
    assert set(rounded) == set(exact)
    for layer, moments in exact.items():
        ours = rounded[layer]
        assert ours.inputs.dtype == ours.outputs.dtype == torch.float32, layer
        # 8 bits of mantissa; rounding opens or closes a ReLU here and there.
        assert ours.rows == pytest.approx(moments.rows, rel=0.02), layer
        assert far(ours.inputs, moments.inputs) < 0.03, layer
        assert far(ours.outputs, moments.outputs) < 0.2, layer
    inputs = [far(rounded[layer].inputs, exact[layer].inputs) for layer in exact]
    assert max(inputs) > 1e-4, "autocast is not on"


@pytest.mark.parametrize("compute", [Compute(checkpointing=True), BF16])
def test_checkpointing_changes_no_moment(make_model, task, kind: str, compute: Compute) -> None:
    model = make_model(kind)
    kept = measure(model, task, 7, with_outputs=True, compute=Compute(compute.autocast))
    again = measure(model, task, 7, with_outputs=True, compute=Compute(compute.autocast, checkpointing=True))
    assert list(again) == list(kept)
    for layer, moments in kept.items():
        assert again[layer].rows == moments.rows, layer
        assert torch.equal(again[layer].inputs, moments.inputs), layer
        assert torch.equal(again[layer].outputs, moments.outputs), layer


@pytest.mark.parametrize("compute", [Compute(), Compute(checkpointing=True), BF16])
def test_a_part_is_summed_as_the_whole_was(make_model, task, kind: str, compute: Compute) -> None:
    model, inputs = make_model(kind), task.inputs(2)
    layers, n = layers_of(model), len(inputs.retain_images)
    arguments = (model, inputs.retain_images, inputs.retain_captions, layers)
    _, whole = retain_gradient_and_sums(
        *arguments, retain_batch=RETAIN_BATCH, micro_batch=7, seed=0, compute=compute
    )
    parts = part_sums(*arguments, rows=torch.arange(n), n_items=n, micro_batch=5, compute=compute)
    # bf16 rounds in other places where pieces are others.
    tolerance = 1e-5 if compute.autocast is None else 1e-2
    for layer, sums in whole.items():
        assert parts[layer].rows == pytest.approx(sums.rows, rel=tolerance), layer
        assert far(parts[layer].inputs, sums.inputs) < tolerance, layer


def test_autocast_around_everything_is_seen_through_too(make_model, task) -> None:
    model = make_model("vit")
    with torch.autocast("cpu", torch.bfloat16):
        around = measure(model, task, 7)
    exact = measure(model, task, 7)
    assert all(far(around[layer].inputs, exact[layer].inputs) < 0.03 for layer in exact)
    assert all(moments.inputs.dtype == torch.float32 for moments in around.values())


def test_float16_is_refused(make_model, task) -> None:
    model, inputs = make_model("vit"), task.inputs(2)
    with pytest.raises(InputError, match="float16 autocast: use bfloat16"):
        measure(model, task, compute=Compute(torch.float16))
    with pytest.raises(InputError, match="float16 autocast: use bfloat16"):
        part_sums(
            model,
            inputs.retain_images,
            inputs.retain_captions,
            ["text_projection"],
            rows=torch.arange(42),
            n_items=42,
            micro_batch=7,
            compute=Compute(torch.float16),
        )


def test_only_matrices_no_wider_than_asked_have_moments(model: ClipModel, task) -> None:
    whole, narrow = measure(model, task), measure(model, task, widest=32)
    assert {layer for layer, m in whole.items() if m.inputs.shape[-1] <= 32} == set(narrow)
    assert 0 < len(narrow) < len(whole)
    assert all(m.outputs is None for m in whole.values())


def test_a_layer_whose_inputs_overflow_is_refused_by_name(model: ClipModel, task) -> None:
    # A gain of 1e25 and a weight of 1e-25 after it: finite features and gradients, but a a^T overflows.
    with torch.no_grad():
        model.parameters["ln_final.weight"].mul_(1e25)
        model.net.ln_final.bias.mul_(1e25)
        model.parameters["text_projection"].mul_(1e-25)
    with pytest.raises(ModelError, match=r"(second moment|gradient) of .*text_projection.* is not finite"):
        measure(model, task)


# The linear maps themselves, on small graphs.


def collected(features: Tensor, weight: nn.Parameter, wanted: Tensor) -> Tensor:
    (use,) = uses(features, {"w": weight})
    return torch.cat(list(use.inputs(wanted)), dim=1)


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, (0, 0), 1, 1), (2, (1, 2), 1, 1), (1, (2, 1), 2, 1), (2, (1, 1), 1, 3), (1, (1, 1), 1, 6)],
)
def test_windows_of_a_convolution_are_what_it_multiplies(
    monkeypatch, stride, padding, dilation, groups
) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(5, 6, 7, 8, generator=draw)
    weight = nn.Parameter(torch.randn(12, 6 // groups, 3, 2, generator=draw))
    out = functional.conv2d(images, weight, None, stride, padding, dilation, groups)
    padded = functional.pad(images, (padding[1], padding[1], padding[0], padding[0]))
    n_parts = 6 // groups
    windows = []
    for image, y, x in itertools.product(range(5), range(out.shape[2]), range(out.shape[3])):
        top, left = y * stride, x * stride
        window = padded[
            image, :, top : top + 2 * dilation + 1 : dilation, left : left + dilation + 1 : dilation
        ]
        windows.append(torch.stack([part.flatten() for part in window.split(n_parts)]))
    wanted = torch.stack(windows, dim=1)
    for values in (2**23, 1):  # the second: one image at a time
        monkeypatch.setattr("unlearning.moments_graph.PIECE_VALUES", values)
        everything = torch.ones(wanted.shape[1], dtype=torch.bool)
        rows = collected(out, weight, everything)
        assert torch.equal(rows, wanted)
        some = torch.arange(wanted.shape[1]) % 3 == 0
        some[: len(some) // 5] = False  # none of the first image
        assert torch.equal(collected(out, weight, some), wanted[:, some])
    (use,) = uses(out, {"w": weight})
    matrix = MatrixForm(use.parts, use.stored_by_input).as_matrix(weight)
    torch.testing.assert_close(rows @ matrix.mT, use.output_gradients(out), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(4,), (3, 4)])
def test_a_weight_is_read_by_how_it_is_used_not_by_its_shape(batch: tuple[int, ...]) -> None:
    # Square on purpose: shapes cannot tell x @ P from x @ W.T.
    x, weight = torch.randn(*batch, 5), nn.Parameter(torch.randn(5, 5))
    for out, stored_by_input in ((functional.linear(x, weight), False), (x @ weight, True)):
        (use,) = uses(out, {"w": weight})
        assert use.stored_by_input is stored_by_input
        form = MatrixForm(use.parts, use.stored_by_input)
        rows = collected(out, weight, torch.ones(out.numel() // 5, dtype=torch.bool))
        torch.testing.assert_close((rows @ form.as_matrix(weight).mT).view_as(out), out)


@pytest.mark.parametrize("values", [1, 11, 2**20])  # one row at a time, two, all
def test_rows_of_a_matrix_come_in_pieces_and_all_of_them(monkeypatch, values: int) -> None:
    monkeypatch.setattr("unlearning.moments_graph.PIECE_VALUES", values)
    x, weight = torch.randn(7, 5), nn.Parameter(torch.randn(3, 5))
    out = functional.linear(x, weight)
    for wanted in (torch.ones(7).bool(), torch.arange(7) % 3 == 0, torch.zeros(7).bool()):
        assert torch.equal(collected(out, weight, wanted)[0], x[wanted])


def test_a_weight_used_otherwise_is_refused_and_an_unused_one_is_absent() -> None:
    weight, other = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
    assert uses(torch.randn(2, 3) @ weight, {"other": other}) == []
    with pytest.raises(ModelError, match="w is used by MulBackward0"):
        uses(torch.randn(3, 3) * weight, {"w": weight})


def test_a_sample_of_places_covers_all_of_them_over_the_images(monkeypatch) -> None:
    monkeypatch.setattr(moments_collector, "ROWS_PER_INPUT", 10)
    weight = nn.Parameter(torch.randn(4, 2, 1, 1))  # 2 inputs: about 20 rows wanted of 8 * 25
    images = torch.randn(8, 2, 5, 5)

    def run(pieces: list[int]) -> Moments:
        collector = moments_collector.Collector({"w": weight}, 8, None, True)
        for piece in torch.arange(8).split(pieces):
            out = functional.conv2d(images[piece], weight)
            collector.watch(out, piece)
            torch.autograd.grad(out.square().sum(), weight)
        return collector.sums()["w"].mean()

    whole, pieces = run([8]), run([3, 5])
    kept = [(i, p) for i in range(8) for p in range(25) if (i + p) % 10 == 0]
    rows = torch.stack([images[i].flatten(1)[:, p] for i, p in kept])
    assert whole.rows == pieces.rows == len(kept)
    torch.testing.assert_close(whole.inputs[0], rows.T @ rows / len(rows))
    changes = 2 * rows @ weight.detach()[:, :, 0, 0].T  # gradients of the sum of squares
    torch.testing.assert_close(whole.outputs[0], changes.T @ changes / len(rows))
    torch.testing.assert_close(pieces.inputs, whole.inputs)
    assert len({p for _, p in kept}) == len(kept)


def test_places_behind_a_closed_relu_do_not_count() -> None:
    weight = nn.Parameter(torch.tensor([[[[1.0]]]]))
    images = torch.tensor([[[[2.0, -3.0], [0.5, -1.0]]]])
    collector = moments_collector.Collector({"w": weight}, 1, None, True)
    out = functional.conv2d(images, weight).relu()
    collector.watch(out, torch.tensor([0]))
    torch.autograd.grad(out.sum(), weight)
    moments = collector.sums()["w"].mean()
    assert moments.rows == 2
    assert float(moments.inputs) == pytest.approx((4.0 + 0.25) / 2)
    assert float(moments.outputs) == 1.0
