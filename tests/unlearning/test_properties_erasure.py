"""Properties of the closed-form erasure on drawn samples: few, repeated, of more features than samples."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from contracts.values import Method
from tests.unlearning.conftest import Task, captions
from tests.unlearning.erasing import mapped
from unlearning import ClipModel, UnlearnInputs, methods
from unlearning.leace import Erasure, LabelledMoments, fit_erasure

PROPERTY = settings(deadline=None, derandomize=True, max_examples=50)


class Samples:
    """Features x (n, d) about unequal class means, labels z (n, k): one-hot of k classes, zero for the rest.

    Args:
        seed: of the features.
        counts: samples of each class; the rest comes first.
        d: features.
        repeats: how often every sample appears.
        offset: size of the mean that all have in common.
    """

    def __init__(self, seed: int, counts: list[int], d: int, repeats: int, offset: float) -> None:
        self.draw = torch.Generator().manual_seed(seed)
        labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        mix, centres = self.normal(d, d), 2.0 * self.normal(len(counts), d)
        x = self.normal(len(labels), d) @ mix + centres[labels] + offset * self.normal(1, d)
        self.x, self.labels = x.repeat(repeats, 1), labels.repeat(repeats)
        self.z = functional.one_hot(self.labels, len(counts))[:, 1:].double()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.draw, dtype=torch.float64)

    @property
    def moments(self) -> LabelledMoments:
        return LabelledMoments(self.x.shape[1], self.z.shape[1]).add(self.x, self.z)

    @property
    def size(self) -> float:
        """What rounding is measured against: the spread, and the mean where it is larger."""
        return float((self.x - self.x.mean(0)).abs().max() + 1e-6 * self.x.abs().max())


SAMPLES = st.builds(
    Samples,
    seed=st.integers(0, 10**6),
    counts=st.lists(st.sampled_from([1, 1, 2, 5, 12]), min_size=2, max_size=5),
    d=st.integers(1, 12),
    repeats=st.integers(1, 3),
    offset=st.sampled_from([0.0, 3.0, 100.0]),
)
SHRINKAGE = st.sampled_from([0.0, 0.01, 0.2, 1.0])


def class_means(x: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([x[labels == c].mean(0) for c in labels.unique()])


@PROPERTY
@given(SAMPLES, SHRINKAGE, st.booleans())
def test_afterwards_all_classes_have_one_mean_and_probes_are_at_chance(
    samples: Samples, shrinkage: float, affine: bool
) -> None:
    erasure = fit_erasure(samples.moments, shrinkage, affine=affine)
    erased = mapped(erasure, samples.x)
    means = class_means(erased, samples.labels)
    assert float((means - means.mean(0)).abs().max()) <= 1e-6 * samples.size
    # The best affine probe of "which class": least squares, with directions of rounding left out.
    centred, wanted = erased - erased.mean(0), samples.z - samples.z.mean(0)
    if float(centred.abs().max()) > 1e-6 * samples.size:
        fit = centred @ torch.linalg.lstsq(centred, wanted, rcond=1e-6, driver="gelsd").solution
        assert float(fit.square().sum()) <= 1e-6 * float(wanted.square().sum())


@PROPERTY
@given(SAMPLES, SHRINKAGE, st.booleans())
def test_erasing_twice_is_erasing_once(samples: Samples, shrinkage: float, affine: bool) -> None:
    erasure = fit_erasure(samples.moments, shrinkage, affine=affine)
    once = mapped(erasure, samples.x)
    torch.testing.assert_close(mapped(erasure, once), once, rtol=1e-6, atol=1e-6 * samples.size)
    rank = erasure.left.shape[1]
    torch.testing.assert_close(
        erasure.right @ erasure.left, torch.eye(rank, dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


@PROPERTY
@given(SAMPLES, SHRINKAGE, st.booleans())
def test_no_other_map_that_erases_moves_less(samples: Samples, shrinkage: float, affine: bool) -> None:
    # All other maps that erase are x - (P + A)(x - centre) with A cov(x, z) = 0.  P is the smallest one
    # exactly if P and every such A are at right angles in the metric of the mean squared change.
    seen = samples.moments
    erasure = fit_erasure(seen, shrinkage, affine=affine)
    p = erasure.left @ erasure.right
    d = len(p)
    metric = (1 - shrinkage) * seen.cov_xx + shrinkage * seen.cov_xx.diagonal().mean() * torch.eye(d).double()
    if not affine:
        metric = metric + torch.outer(seen.mean_x, seen.mean_x)
    across = torch.eye(d).double() - seen.cov_xz @ torch.linalg.pinv(seen.cov_xz, rtol=1e-9)
    moved = float((p @ metric @ p.T).trace())
    for size in (1e-2, 1.0):
        a = size * samples.normal(d, d) @ across
        cross = float((a @ metric @ p.T).trace())
        rival = float(((a + p) @ metric @ (a + p).T).trace())
        assert abs(cross) <= 1e-6 * float((a @ metric @ a.T).trace() * moved) ** 0.5 + 1e-9 * moved
        assert rival >= moved * (1 - 1e-6)


@PROPERTY
@given(SAMPLES, SHRINKAGE, st.integers(-30, 30))
def test_it_turns_scales_and_shifts_with_the_features(
    samples: Samples, shrinkage: float, exponent: int
) -> None:
    turn, _ = torch.linalg.qr(samples.normal(samples.x.shape[1], samples.x.shape[1]))
    unit, shift = 2.0**exponent, samples.normal(1, samples.x.shape[1])

    def moved(x: Tensor) -> Tensor:
        return (x + shift) @ turn * unit

    plain = mapped(fit_erasure(samples.moments, shrinkage), samples.x)
    d, k = samples.x.shape[1], samples.z.shape[1]
    there = fit_erasure(LabelledMoments(d, k).add(moved(samples.x), samples.z), shrinkage)
    torch.testing.assert_close(
        mapped(there, moved(samples.x)), moved(plain), rtol=1e-5, atol=1e-5 * unit * samples.size
    )


@PROPERTY
@given(SAMPLES, SHRINKAGE)
def test_how_labels_are_coded_does_not_matter(samples: Samples, shrinkage: float) -> None:
    k = samples.z.shape[1]
    code = torch.eye(k).double() * 3.0 + 0.2 * samples.normal(k, k)  # far from singular
    recoded = LabelledMoments(samples.x.shape[1], k).add(samples.x, samples.z @ code - 7.0)
    one, other = (fit_erasure(m, shrinkage) for m in (samples.moments, recoded))
    torch.testing.assert_close(
        mapped(one, samples.x), mapped(other, samples.x), rtol=1e-6, atol=1e-6 * samples.size
    )


@PROPERTY
@given(SAMPLES, SHRINKAGE, st.booleans())
def test_folded_into_a_layer_it_is_the_same_map(samples: Samples, shrinkage: float, affine: bool) -> None:
    erasure: Erasure = fit_erasure(samples.moments, shrinkage, affine=affine)
    weight, bias = samples.normal(3, samples.x.shape[1]), samples.normal(3)
    change, constant = erasure.folded(weight)
    torch.testing.assert_close(
        samples.x @ (weight + change).T + bias + constant,
        mapped(erasure, samples.x) @ weight.T + bias,
        rtol=1e-7,
        atol=1e-8 * samples.size,
    )


@pytest.fixture(scope="module")
def weights(make_model: Callable[..., ClipModel]) -> tuple[ClipModel, dict[str, Tensor]]:
    model = make_model("vit")
    return model, {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def some_items(task: Task, target: int, n: int, repeats: int) -> UnlearnInputs:
    """`n` forget items, each `repeats` times."""
    whole = task.inputs(target)
    rows = np.tile(np.arange(n), repeats)
    labels = whole.forget_labels[rows]
    return task.inputs(
        target,
        forget_images=whole.forget_images[rows],
        forget_captions=captions(labels),
        forget_labels=labels,
    )


def raw_features(model: ClipModel, inputs: UnlearnInputs, tower: str) -> tuple[Tensor, Tensor]:
    """Features of forget and retain set before they are normalised: linear in what the projection reads."""
    if tower == "vision":
        encode = model.net.encode_image
        parts = [model.preprocess(x) for x in (inputs.forget_images, inputs.retain_images)]
    else:
        encode = model.net.encode_text
        parts = [model.tokenize(c) for c in (inputs.forget_captions, inputs.retain_captions)]
    with torch.no_grad():
        forget, retain = (encode(part, normalize=False).double() for part in parts)
    return forget, retain


@settings(deadline=None, derandomize=True, max_examples=6)
@given(
    st.integers(0, 7),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["visual.proj", "text_projection"]),
)
def test_in_a_model_the_concepts_mean_is_that_of_the_rest(
    weights: tuple[ClipModel, dict[str, Tensor]], target: int, n: int, repeats: int, layer: str
) -> None:
    model, original = weights
    model.net.load_state_dict(original)
    tower = "vision" if layer.startswith("visual") else "text"
    inputs = some_items(Task(Method(forget_at=2, micro_batch=16)), target, n, repeats)
    before = [features.mean(0) for features in raw_features(model, inputs, tower)]
    full = {"layer": layer, "least": 1.0, "most": 1.0}
    method = Method(name="erase-linear", forget_at=2, micro_batch=16, options=full)
    outcome = methods.unlearn(model, inputs, method)
    after = [features.mean(0) for features in raw_features(model, inputs, tower)]
    assert [edit.layer for edit in outcome.edits] == [layer]
    assert outcome.edits[0].step_size == 1.0
    assert float((after[0] - after[1]).norm()) <= 1e-3 * float((before[0] - before[1]).norm())
