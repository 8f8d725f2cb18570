"""What bench.limit prints, on a tiny model: sizes and ratios that belong together, and a model left alone."""

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import limit
from bench.footprint import growth
from bench.work import Sizes, known_retain
from contracts.values import Method
from tests.unlearning.conftest import (  # the fixtures `make_model` and `vocabulary` among them
    Task,
    make_model,  # noqa: F401
    vocabulary,  # noqa: F401
)
from unlearning import ClipModel, UnlearnInputs, methods

PRECONDITIONED = Method(
    name="slug-preconditioned", forget_at=2, micro_batch=16, retain_batch=64, search_steps=2, towers=("text",)
)


@pytest.fixture(scope="module")
def tiny(make_model: Callable[..., ClipModel]) -> ClipModel:  # noqa: F811
    return make_model("vit")


@pytest.fixture(scope="module")
def inputs() -> UnlearnInputs:
    return Task(PRECONDITIONED).inputs(3)


@pytest.fixture(scope="module")
def printed(tiny: ClipModel, inputs: UnlearnInputs) -> dict[str, Any]:
    """What `python -m bench.limit --json` prints if ViT-B-32 is the tiny model."""
    asked: list[Sizes] = []

    def work(name: str, sizes: Sizes, seed: int) -> tuple[ClipModel, UnlearnInputs]:
        asked.append(sizes)
        return tiny, inputs

    slug = Method(forget_at=2, search_steps=3)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(limit, "random_work", work)
        patch.setattr(limit, "_methods", lambda name: (PRECONDITIONED, slug))
        limit.main(["--models", "ViT-B-32", "--json", "--repeats", "1", "--paper", "4", "--forget", "6"])
    assert asked == [replace(limit.SIZES["ViT-B-32"], forget=6)]
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_the_ratios_are_those_of_the_seconds_beside_them(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    seconds = row["seconds"]
    unavoidable = seconds["forget"] + seconds["retain"] + seconds["search"]
    assert seconds["limit"] == pytest.approx(unavoidable)
    assert row["ratio"] == pytest.approx(seconds["default"] / unavoidable)
    assert row["ratio_full_front"] == pytest.approx(seconds["full_front"] / unavoidable)
    assert row["ratio_cached"] == pytest.approx(seconds["cached"] / (seconds["forget"] + seconds["search"]))
    assert all(value > 0 for value in seconds.values())
    assert printed["ratio"] is None, "the headline is the reference model's, which did not run"
    assert row["sizes"]["classes"] == 8


def test_the_papers_share_is_scaled_up_from_what_was_timed(printed: dict[str, Any]) -> None:
    row = printed["models"]["ViT-B-32"]
    found = row["paper"]
    assert found["evaluations"] == 3 * found["front_layers"] > found["evaluations_timed"] == 4
    assert found["cpu_seconds"] == pytest.approx(sum(found["seconds"].values()))
    assert found["ratio_to_ours"] == pytest.approx(found["cpu_seconds"] / row["seconds"]["full_front"])
    assert found["with_losses"]["cpu_seconds"] > found["cpu_seconds"]
    assert found["ratio_to_default"] == pytest.approx(found["cpu_seconds"] / row["seconds"]["default"])


def test_what_is_allowed_follows_from_tensors_and_activations(
    printed: dict[str, Any], tiny: ClipModel
) -> None:
    for name, towers in (("default", {"text"}), ("full_front", {"text", "vision"})):
        memory = printed["models"]["ViT-B-32"]["memory"][name]
        n_bytes = sum(4 * c.n_params for c in tiny.candidates() if c.tower in towers)
        assert memory["candidate_tensors_mib"] == pytest.approx(n_bytes / 2**20)
        if memory["profiling_mib"] is not None:
            allowed = 2.2 * memory["candidate_tensors_mib"] + memory["micro_batch_activations_mib"]
            assert memory["allowed_mib"] == pytest.approx(allowed)


def test_measuring_leaves_the_model_as_it_was(tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path) -> None:
    # Otherwise the second repeat would measure a model that has forgotten already.
    before = {name: tensor.clone() for name, tensor in tiny.net.state_dict().items()}
    limit._timed(tiny, inputs, PRECONDITIONED, Method(forget_at=2, search_steps=2), tmp_path, repeats=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.net.state_dict().items())


def test_the_reference_models_sets_are_as_large_as_promised() -> None:
    sizes = limit.SIZES["reference"]
    assert sizes.forget >= 100
    assert sizes.retain >= 1000
    assert sizes.search >= 500


def test_what_is_known_of_the_retain_set_gives_the_same_directions(
    tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path
) -> None:
    # The file is of the set with the concept's own items, so this catches one that is not left out again.
    later = known_retain(tiny, inputs, PRECONDITIONED, tmp_path / "retain.safetensors")
    assert later is not None
    known = later().known_retain
    assert known is not None
    assert known.statistics.n_items == len(inputs.retain_images) + len(known.rows)
    assert len(known.rows) == len(inputs.retain_images) // 8
    (plain,) = methods.profile(tiny, inputs, PRECONDITIONED).directions.values()
    (cached,) = methods.profile(tiny, later(), PRECONDITIONED).directions.values()
    assert plain.keys() == cached.keys()
    for layer, direction in plain.items():
        torch.testing.assert_close(
            cached[layer], direction, rtol=1e-3, atol=1e-3 * float(direction.abs().max()), msg=layer
        )


def test_a_method_that_can_use_nothing_known_is_not_timed_with_it(
    tiny: ClipModel, inputs: UnlearnInputs, tmp_path: Path
) -> None:
    assert known_retain(tiny, inputs, Method(), tmp_path / "retain.safetensors") is None


def test_growth_sees_what_is_used_and_that_freed_memory_is_used_again() -> None:
    if growth(lambda: None) is None:
        pytest.skip("this kernel does not tell the peak of the resident size")
    sizes = []
    for _ in range(2):
        grown = growth(lambda: [torch.ones(1 << 16) for _ in range(256)])  # 64 MiB in pieces of 256 KiB
        assert grown is not None
        sizes.append(grown)
    assert all(60 < grown < 90 for grown in sizes)
