"""Same seed, same threads: same bits; and nothing outside is changed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from unlearning import unlearn
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel


def surroundings() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_rng_state().sum().item(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


@pytest.fixture(params=["none", "highest", "high", "medium", "tf32 of cuBLAS", "bf16 of oneDNN"])
def products(request: pytest.FixtureRequest) -> Iterator[str]:
    """How exactly the process multiplies fp32 matrices, in torch's older words and its newer ones."""
    cublas, onednn = libraries = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = [library.fp32_precision for library in libraries]
    match request.param:
        case "none":  # as a process begins
            torch.set_float32_matmul_precision("highest")
            cublas.fp32_precision = onednn.fp32_precision = "none"
        case "tf32 of cuBLAS":
            cublas.fp32_precision = "tf32"
        case "bf16 of oneDNN":
            onednn.fp32_precision = "bf16"
        case common:
            torch.set_float32_matmul_precision(common)
    yield request.param
    torch.set_float32_matmul_precision("highest")
    for library, precision in zip(libraries, before, strict=True):
        library.fp32_precision = precision


def test_everything_is_restored_also_after_an_exception(products: str) -> None:
    before = surroundings()

    def use_everything() -> None:
        with deterministic(seed=5, threads=2):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 2
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
            _ = torch.rand(3), np.random.rand(3), random.random()
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        use_everything()
    assert surroundings() == before
    if products in ("highest", "high", "medium"):
        assert torch.get_float32_matmul_precision() == products
    with deterministic(seed=5, threads=2):
        pass
    assert surroundings() == before


def test_the_seed_decides_the_numbers() -> None:
    def draw(seed: int) -> tuple[float, ...]:
        with deterministic(seed, threads=1):
            return torch.rand(1).item(), float(np.random.rand()), random.random()

    assert draw(1) == draw(1)
    assert all(a != b for a, b in zip(draw(1), draw(2), strict=True))


def test_equal_inputs_give_an_equal_candidate(
    make_model: Callable[..., ClipModel], task, tmp_path: Path
) -> None:
    digests = []
    for run in ("a", "b"):
        model = make_model("vit", seed=4)
        with deterministic(seed=0, threads=1):
            unlearn(model, task.inputs(3), task.method)
        digests.append(model.save(tmp_path / run)["weights.safetensors"])
    assert digests[0] == digests[1]
    assert digests[0] != make_model("vit", seed=4).save(tmp_path / "untouched")["weights.safetensors"]
