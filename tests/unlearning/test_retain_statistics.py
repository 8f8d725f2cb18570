"""Statistics of a retain set that are kept: exact without what a request leaves out, and safe on disk."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method
from tests.unlearning.conftest import captions, items
from unlearning import methods, retain_statistics
from unlearning.families.clip import ClipModel
from unlearning.moments import retain_gradient_and_sums
from unlearning.retain_statistics import KnownRetain, RetainStatistics, Wanted, measure, read, write

WANTED = Wanted(("text", "vision"), retain_batch=24, widest=1024, seed=0)
TARGET = 2


def whole_set() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, labels = items(6, seed=3)
    return images, labels, np.array(captions(labels))


def whole(model: ClipModel, wanted: Wanted = WANTED) -> RetainStatistics:
    images, _, texts = whole_set()
    return measure(model, images, texts.tolist(), wanted, micro_batch=16)


def known(model: ClipModel, target: int | None, wanted: Wanted = WANTED) -> KnownRetain:
    images, labels, texts = whole_set()
    rows = np.flatnonzero(labels == target)
    return KnownRetain(whole(model, wanted), torch.from_numpy(rows), images[rows], texts[rows].tolist())


def test_moments_without_some_items_are_those_of_the_set_without_them(model: ClipModel) -> None:
    # Of convolutions the sample of places depends on the size of the set: the next test is about those.
    found = known(model, TARGET)
    layers = list(found.statistics.gradient)
    images, labels, texts = whole_set()
    kept = labels != TARGET
    _, sums = retain_gradient_and_sums(
        model,
        images[kept],
        texts[kept].tolist(),
        layers,
        retain_batch=24,
        micro_batch=16,
        seed=0,
        widest=1024,
    )
    text = [layer for layer in sums if not layer.startswith("visual.")]
    assert text
    moments = found.moments(model, layers, micro_batch=5)
    assert list(moments) == list(found.statistics.sums)
    for layer in text:
        scale = float(sums[layer].mean().inputs.abs().max())
        torch.testing.assert_close(
            moments[layer].inputs, sums[layer].mean().inputs, atol=1e-5 * scale, rtol=1e-4
        )
        assert moments[layer].rows == sums[layer].rows
        unlike = found.statistics.sums[layer].mean().inputs - moments[layer].inputs
        assert float(unlike.abs().max()) > 1e-3 * scale  # the items that are left out do matter


def test_an_item_left_over_by_the_batches_is_counted_too(model: ClipModel) -> None:
    # 48 = 47 + 1.  A batch of one has no gradient: no row of it counted, and to subtract the item was wrong.
    found = known(model, TARGET, replace(WANTED, retain_batch=47))
    _, labels, _ = whole_set()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(WANTED.seed))
    usual = whole(model)
    for layer, sums in found.statistics.sums.items():
        # A convolution's rows are told by closed ReLUs; rounding in other pieces moves none of them.
        assert sums.rows == usual.sums[layer].rows, layer
    images, _, texts = whole_set()
    last = order[-1:]
    lone = KnownRetain(found.statistics, last, images[last.numpy()], texts[last.numpy()].tolist())
    rest = KnownRetain(usual, last, images[last.numpy()], texts[last.numpy()].tolist())
    layers = [layer for layer in usual.sums if not layer.startswith("visual.")]
    for (layer, ours), theirs in zip(
        lone.moments(model, layers, 16).items(), rest.moments(model, layers, 16).values(), strict=True
    ):
        scale = float(theirs.inputs.abs().max())
        torch.testing.assert_close(ours.inputs, theirs.inputs, atol=1e-5 * scale, rtol=1e-4, msg=layer)


def test_parts_of_a_set_add_up_to_it_also_where_places_are_sampled(model: ClipModel, monkeypatch) -> None:
    monkeypatch.setattr("unlearning.moments_collector.ROWS_PER_INPUT", 1)
    images, labels, texts = whole_set()
    nothing_left = KnownRetain(whole(model), torch.arange(len(labels)), images, texts.tolist())
    for layer, moments in nothing_left.moments(model, list(nothing_left.statistics.sums), 7).items():
        scale = float(nothing_left.statistics.sums[layer].inputs.abs().max())
        assert moments.rows == 0, layer
        assert float(moments.inputs.abs().max()) < 1e-5 * scale, layer


def test_nothing_left_out_is_the_set_itself(model: ClipModel) -> None:
    found = known(model, target=None)
    for layer, moments in found.moments(model, list(found.statistics.sums), 16).items():
        assert torch.equal(moments.inputs, found.statistics.sums[layer].mean().inputs)


def test_a_method_steps_the_same_way_with_known_statistics(model: ClipModel, task) -> None:
    method = Method(
        name="slug-preconditioned", towers=("text",), forget_at=2, micro_batch=16, retain_batch=24
    )
    images, labels, texts = whole_set()
    kept = labels != TARGET
    inputs = task.inputs(TARGET, retain_images=images[kept], retain_captions=tuple(texts[kept].tolist()))
    wanted = methods.statistics(method, inputs.seed)
    assert wanted == Wanted(("text",), 24, 1024, 0)
    own = methods.profile(model, inputs, method)
    reused = methods.profile(model, replace(inputs, known_retain=known(model, TARGET, wanted)), method)
    (concept,) = own.directions
    assert own.directions[concept].keys() == reused.directions[concept].keys()
    for layer, direction in own.directions[concept].items():
        cosine = torch.cosine_similarity(direction.flatten(), reused.directions[concept][layer].flatten(), 0)
        assert float(cosine) > 1 - 1e-5, layer


def test_the_retain_set_is_not_seen_again(model: ClipModel, task, monkeypatch) -> None:
    method = Method(name="slug-preconditioned", towers=("text",), forget_at=2, micro_batch=16)
    wanted = methods.statistics(method, 0)
    assert wanted is not None
    inputs = replace(task.inputs(TARGET), known_retain=known(model, TARGET, wanted))

    def again(*args: object, **options: object) -> None:
        raise AssertionError("the retain gradient was computed again")

    monkeypatch.setattr("unlearning.request.retain_gradient", again)
    assert methods.profile(model, inputs, method).directions


@pytest.mark.parametrize(
    "change", [{"retain_batch": 12}, {"towers": ("vision",)}, {"options": {"choose": "pareto"}}]
)
def test_statistics_for_another_method_are_refused(model: ClipModel, task, change: dict) -> None:
    method = Method(name="slug-preconditioned", towers=("text",), forget_at=2, retain_batch=24)
    wanted = methods.statistics(method, 0)
    assert wanted is not None
    inputs = replace(task.inputs(TARGET), known_retain=known(model, TARGET, wanted))
    with pytest.raises(InputError, match="known retain statistics"):
        methods.profile(model, inputs, replace(method, **change))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slug", {}),
        ("slug-preconditioned", {"choose": "pareto"}),
        ("slug-preconditioned", {"output_epsilon": 0.1}),
        ("fine-tuning", {}),
    ],
)
def test_a_method_that_needs_its_own_retain_gradient_asks_for_nothing(name: str, options: dict) -> None:
    assert methods.statistics(Method(name=name, options=options), 0) is None


def test_a_file_holds_them_bit_by_bit(model: ClipModel, tmp_path: Path) -> None:
    statistics = whole(model)
    write(statistics, tmp_path / "s.safetensors")
    again = read(tmp_path / "s.safetensors", WANTED)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]
    assert again.n_items == statistics.n_items
    assert list(again.sums) == list(statistics.sums)
    for layer, gradient in statistics.gradient.items():
        assert torch.equal(again.gradient[layer], gradient)
    for layer, sums in statistics.sums.items():
        assert torch.equal(again.sums[layer].inputs, sums.inputs)
        assert (again.sums[layer].form, again.sums[layer].rows) == (sums.form, sums.rows)


@pytest.mark.parametrize("damage", ["missing", "cut short", "a bit", "a name"])
def test_a_damaged_file_is_refused(model: ClipModel, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "s.safetensors"
    write(whole(model), path)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "a bit":
        content[-5] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(content.replace(b'n_items\\": 48', b'n_items\\": 47'))
        assert path.read_bytes() != bytes(content)
    with pytest.raises(ModelError, match=r"s\.safetensors"):
        read(path, WANTED)


def test_the_digest_tells_every_part_and_copies_no_tensor_twice() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(())}
    digest = retain_statistics._digest(tensors, "{}")
    assert retain_statistics._digest(dict(reversed(tensors.items())), "{}") == digest
    others = [
        {**tensors, "b": torch.ones(())},
        {**tensors, "a": tensors["a"].reshape(3, 2)},
        {**tensors, "b": torch.zeros((), dtype=torch.int32)},
        {"a": tensors["a"], "c": tensors["b"]},
        {"a": tensors["a"]},
    ]
    found = [retain_statistics._digest(other, "{}") for other in others]
    assert len({digest, retain_statistics._digest(tensors, "[]"), *found}) == len(others) + 2
    large = {name: torch.zeros(500_000) for name in "abcd"}
    tracemalloc.start()  # of bytes objects: torch's own memory is not seen
    try:
        retain_statistics._digest(large, "{}")
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
