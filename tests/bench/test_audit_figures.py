"""The probe finds what is there and nothing that is not; search and rounding against their definitions."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

import bench.provenance
from bench.audits import average_precision as search
from bench.audits import fp16, int8
from bench.cost import costing
from bench.probes import probed
from bench.provenance import _portable


def features(rng: np.random.Generator, n: int, shift: float) -> np.ndarray:
    drawn = rng.normal(size=(n, 16))
    drawn[:, 0] += shift
    return drawn


LINEAR, KERNEL = Ridge(alpha=415.0), KernelRidge(alpha=1.0, kernel="rbf")


@pytest.mark.parametrize("regression", [LINEAR, KERNEL])
@pytest.mark.parametrize(("shift", "low", "high"), [(4.0, 0.95, 1.0), (0.0, 0.3, 0.7)])
def test_a_probe_finds_a_direction_that_is_there_and_no_other(
    regression: Any, shift: float, low: float, high: float
) -> None:
    rng = np.random.default_rng(0)
    taught = np.concatenate([features(rng, 15, shift), features(rng, 400, 0)])
    wanted, others = features(rng, 60, shift), features(rng, 60, 0)
    found = probed(regression, taught, np.arange(415) < 15, wanted, others, seed=0)
    assert low <= found.figures["auc"] <= high
    assert found.figures["auc_chance"] == pytest.approx(0.5, abs=0.1)
    assert found.figures["auc_chance95"] < 0.95
    assert (found.caught.mean() > 0.8) == (shift > 0)


@pytest.mark.parametrize(("regression", "finds"), [(LINEAR, False), (KERNEL, True)])
def test_only_the_kernel_probe_finds_what_no_line_tells_apart(regression: Any, finds: bool) -> None:
    rng = np.random.default_rng(0)

    def split(n: int) -> np.ndarray:  # as far on one side as on the other: its mean is that of the rest
        drawn = rng.normal(size=(n, 4))
        drawn[:, 0] += np.where(np.arange(n) % 2, 4.0, -4.0)
        return drawn

    taught = np.concatenate([split(100), rng.normal(size=(400, 4))])
    found = probed(regression, taught, np.arange(500) < 100, split(60), rng.normal(size=(60, 4)), seed=0)
    assert (found.figures["auc"] > 0.9) == finds
    assert (found.caught.mean() > 0.8) == finds


def test_average_precision_by_hand() -> None:
    # Given two queries: wanted at ranks 1 and 3, and at rank 2
    scores = np.array([[0.9, 0.5, 0.7, 0.1], [0.9, 0.8, 0.1, 0.0]])
    wanted = np.array([[True, True, False, False], [False, True, False, False]])
    found = search(scores, wanted, np.array(["a", "b"]))
    assert found["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert found["chance"] == pytest.approx(3 / 8)
    assert (found["first"]["hits"], found["first"]["n"]) == (1, 2)


def test_a_query_without_an_answer_does_not_count() -> None:
    scores = np.array([[0.9, 0.1], [0.9, 0.1]])
    found = search(scores, np.array([[True, False], [False, False]]), np.array(["a", "b"]))
    assert (found["map"], found["first"]["n"]) == (1.0, 1)


@pytest.mark.parametrize(
    ("name", "shape", "channel"),
    [("mlp.c_fc.weight", (6, 40), 0), ("conv1.weight", (5, 3, 3, 3), 0), ("text_projection", (40, 6), 1)],
)
def test_int8_has_one_scale_per_output_channel(name: str, shape: tuple[int, ...], channel: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor([10.0**i for i in range(shape[channel])])
    weight = weight * scale.view([-1 if d == channel else 1 for d in range(len(shape))])
    rounded = int8(name, weight)
    for own, kept in zip(weight.unbind(channel), rounded.unbind(channel), strict=True):
        step = own.abs().max() / 127
        assert (own - kept).abs().max() <= step * 0.501
        assert not torch.equal(own, kept)
        assert torch.allclose((kept / step).round() * step, kept)


def test_gains_and_biases_stay_and_half_precision_rounds_everything() -> None:
    gain = torch.full((4,), 1 / 3)
    assert int8("ln_1.weight", gain) is gain
    assert fp16("ln_1.weight", gain)[0] == gain[0].half().float() != gain[0]


def test_the_growth_of_memory_is_seen() -> None:
    with costing() as cost:
        block = np.ones(32 << 20, dtype=np.uint8)
    with costing() as nothing:
        pass
    if cost.peak_growth_mib is None or nothing.peak_growth_mib is None:
        pytest.skip("this kernel does not tell a process's peak memory")
    assert cost.peak_growth_mib > 24 > nothing.peak_growth_mib
    assert block[0] == 1


def test_no_path_of_the_machine_is_written_down() -> None:
    assert _portable("seed8=/home/somebody/models/seed8") == "seed8=seed8"
    assert _portable("--out=/home/somebody/here") == "--out=here"
    assert _portable("reference=data/models/reference") == "reference=data/models/reference"


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.provenance, "PACKAGES", ("torch", "no-such-package"))
    versions = bench.provenance.provenance("bench.audits")["versions"]
    assert versions["no-such-package"] is None
    assert versions["torch"] == version("torch")
