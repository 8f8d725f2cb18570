"""Properties of gradients and second moments: sums over items, whatever their order and the pieces.

In fp64, so that tolerances are those of sums in another order and nothing hides behind fp32's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.unlearning.conftest import captions, items
from unlearning import moments_collector
from unlearning.accumulation import GradientSum
from unlearning.encoders import Compute
from unlearning.families.clip import ClipModel
from unlearning.gradients import Gradients, forget_gradient, retain_gradient
from unlearning.moment_sums import MomentSums
from unlearning.moments import part_sums, retain_gradient_and_sums

PROPERTY = settings(deadline=None, derandomize=True, max_examples=10)
N = 8
MICRO_BATCHES = st.sampled_from([1, 3, 7, N, 100])
RETAIN_BATCHES = st.integers(2, N)  # 7 leaves one pair over


@dataclass(frozen=True, eq=False)
class Pairs:
    """A model with random weights in fp64, and N pairs of different classes."""

    model: ClipModel
    images: NDArray
    captions: Sequence[str]
    layers: list[str]

    def forget(self, rows: Sequence[int], micro_batch: int) -> Gradients:
        own = [self.captions[i] for i in rows]
        return forget_gradient(self.model, self.images[list(rows)], own, self.layers, micro_batch)

    def retain(
        self, rows: Sequence[int], retain_batch: int, micro_batch: int = 100, seed: int = 0
    ) -> Gradients:
        return retain_gradient(
            self.model,
            self.images[list(rows)],
            [self.captions[i] for i in rows],
            self.layers,
            retain_batch=retain_batch,
            micro_batch=micro_batch,
            seed=seed,
        )

    def sums(self, rows: Sequence[int], retain_batch: int, micro_batch: int) -> dict[str, MomentSums]:
        _, sums = retain_gradient_and_sums(
            self.model,
            self.images[list(rows)],
            [self.captions[i] for i in rows],
            self.layers,
            retain_batch=retain_batch,
            micro_batch=micro_batch,
            seed=0,
            with_outputs=True,
        )
        return sums

    def part(self, rows: Sequence[int], micro_batch: int) -> dict[str, MomentSums]:
        own = [self.captions[i] for i in rows]
        return part_sums(
            self.model,
            self.images[list(rows)],
            own,
            self.layers,
            rows=torch.tensor(rows),
            n_items=N,
            micro_batch=micro_batch,
        )


@pytest.fixture(scope="module", params=["vit", "rn"])
def pairs(request: pytest.FixtureRequest, make_model: Callable[..., ClipModel]) -> Pairs:
    model = make_model(request.param)
    layers = [c.name for c in model.candidates()]
    model.net.double()
    as_fp32 = model.preprocess
    model.preprocess = lambda images: as_fp32(images).double()  # type: ignore[method-assign]
    images, labels = items(1, seed=5)
    return Pairs(model, images, captions(labels), layers)


@pytest.fixture(scope="module")
def alone(pairs: Pairs) -> list[Gradients]:
    """The forget gradient of every item by itself."""
    return [pairs.forget([i], 1) for i in range(N)]


@pytest.fixture(scope="module")
def whole(pairs: Pairs) -> dict[str, MomentSums]:
    """Second moments of all items, every place of every image, in one batch and one piece."""
    with every_place():
        return pairs.sums(range(N), N, 100)


def every_place():
    return mock.patch.object(moments_collector, "ROWS_PER_INPUT", 10**9)


def assert_same(one: Gradients, other: Gradients) -> None:
    assert list(one) == list(other)
    largest = max(float(grad.abs().max()) for grad in other.values())
    for layer, grad in one.items():
        # A layer whose terms cancel keeps the rounding of the largest ones.
        torch.testing.assert_close(grad, other[layer], rtol=1e-8, atol=1e-11 * largest, msg=layer)


def assert_same_sums(one: dict[str, MomentSums], other: dict[str, MomentSums], outputs: bool) -> None:
    assert list(one) == list(other)
    for layer, sums in one.items():
        assert sums.rows == other[layer].rows, layer
        pieces = [(sums.inputs, other[layer].inputs)]
        if outputs:
            assert sums.outputs is not None
            assert other[layer].outputs is not None
            pieces.append((sums.outputs, other[layer].outputs))
        for mine, theirs in pieces:
            torch.testing.assert_close(
                mine, theirs, rtol=1e-8, atol=1e-11 * float(theirs.abs().max()), msg=layer
            )


@PROPERTY
@given(rows=st.lists(st.integers(0, N - 1), min_size=1, max_size=11), micro_batch=MICRO_BATCHES)
def test_the_forget_gradient_is_the_mean_of_the_items_own(
    pairs: Pairs, alone: list[Gradients], rows: list[int], micro_batch: int
) -> None:
    # Additive, linear in how often an item counts, free of order and pieces.  Catches a mean of means of
    # unequal pieces, a sum that is not divided, and a duplicate that is dropped.
    expected = {layer: sum(alone[i][layer] for i in rows) / len(rows) for layer in pairs.layers}
    assert_same(pairs.forget(rows, micro_batch), expected)


@PROPERTY
@given(order=st.permutations(range(N)), micro_batch=MICRO_BATCHES, seed=st.integers(0, 9))
def test_one_retain_batch_has_neither_order_nor_pieces(
    pairs: Pairs, order: list[int], micro_batch: int, seed: int
) -> None:
    # Catches negatives that are those of the micro-batch, and captions that lose their images.
    assert_same(pairs.retain(order, N, micro_batch, seed), pairs.retain(range(N), N))


@PROPERTY
@given(retain_batch=RETAIN_BATCHES, micro_batch=MICRO_BATCHES, seed=st.integers(0, 9))
def test_the_retain_gradient_is_the_mean_of_its_batches(
    pairs: Pairs, retain_batch: int, micro_batch: int, seed: int
) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    wholes = [rows.tolist() for rows in order.split(retain_batch)]
    if len(wholes[-1]) == 1:
        wholes[-2:] = [wholes[-2] + wholes[-1]]
    own = [pairs.retain(rows, len(rows)) for rows in wholes]
    expected = {layer: sum(grad[layer] for grad in own) / len(wholes) for layer in pairs.layers}
    assert_same(pairs.retain(range(N), retain_batch, micro_batch, seed), expected)


@PROPERTY
@given(order=st.permutations(range(N)), retain_batch=RETAIN_BATCHES, micro_batch=MICRO_BATCHES)
def test_moments_of_inputs_do_not_know_order_batches_or_pieces(
    pairs: Pairs, whole: dict[str, MomentSums], order: list[int], retain_batch: int, micro_batch: int
) -> None:
    # The loss decides the gradients at the outputs, never what enters a layer.
    with every_place():
        assert_same_sums(pairs.sums(order, retain_batch, micro_batch), whole, outputs=retain_batch == N)


@PROPERTY
@given(left_out=st.sets(st.integers(0, N - 1), max_size=N - 1), micro_batch=MICRO_BATCHES)
def test_moments_of_parts_add_up_to_those_of_the_set(
    pairs: Pairs, left_out: set[int], micro_batch: int
) -> None:
    # Of a convolution's places a sample is taken: an image's own, wherever it is asked for.
    kept = [i for i in range(N) if i not in left_out]
    total, rest = pairs.sums(range(N), N, 100), pairs.part(kept, micro_batch)
    if left_out:
        gone = pairs.part(sorted(left_out), micro_batch)
        total = {layer: sums.less(gone[layer]) for layer, sums in total.items()}
    assert_same_sums(total, rest, outputs=False)


@PROPERTY
@given(
    weights=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6),
    divisor=st.integers(1, 1000),
    exponent=st.integers(-10, 10),
)
def test_a_sum_of_gradients_is_linear_and_the_loss_scale_divides_out(
    pairs: Pairs, weights: list[float], divisor: int, exponent: int
) -> None:
    (layer,) = [name for name in pairs.layers if name == "text_projection"]
    weight = pairs.model.parameters[layer]
    draw = torch.Generator().manual_seed(0)
    slopes = [torch.randn(weight.shape, generator=draw, dtype=torch.float64) for _ in weights]

    def summed(compute: Compute, scalars: Callable[[Tensor], list[Tensor]]) -> Tensor:
        total = GradientSum(pairs.model, [layer], compute, divisor=divisor)
        weight.requires_grad_(True)
        for scalar in scalars(weight):
            total.add(scalar)
        weight.requires_grad_(False)
        return total.total()[layer]

    expected = sum(w * slope for w, slope in zip(weights, slopes, strict=True))
    scaled = Compute(autocast=torch.float16, loss_scale=2.0**exponent)
    for compute in (Compute(), scaled):
        apart = summed(
            compute, lambda p: [w * (p * slope).sum() for w, slope in zip(weights, slopes, strict=True)]
        )
        torch.testing.assert_close(apart, expected, rtol=1e-10, atol=1e-9)
