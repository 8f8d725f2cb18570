"""What bench.paper prints, on a tiny model: what was timed, what was scaled up, and ratios to it."""

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from bench import paper, procedure
from bench.meter import Meter
from contracts.values import Method
from tests.unlearning.conftest import (  # the fixtures `make_model` and `vocabulary` among them
    Task,
    make_model,  # noqa: F401
    vocabulary,  # noqa: F401
)
from unlearning import ClipModel, UnlearnInputs

SLUG = Method(forget_at=2, micro_batch=16, retain_batch=16, search_steps=3)
HOUSE = Method(name="uce", forget_at=2, micro_batch=16, towers=("text",))


@pytest.fixture(scope="module")
def tiny(make_model: Callable[..., ClipModel]) -> ClipModel:  # noqa: F811
    return make_model("vit")


@pytest.fixture(scope="module")
def inputs() -> UnlearnInputs:
    return Task(SLUG).inputs(3)


@pytest.fixture
def _tiny_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "_ours", lambda house: {"slug": SLUG, "house": house})


@pytest.fixture
def found(tiny: ClipModel, inputs: UnlearnInputs, _tiny_methods: None) -> dict[str, Any]:
    before = {name: tensor.clone() for name, tensor in tiny.net.state_dict().items()}
    found = paper.compare(tiny, inputs, HOUSE, evaluations=5, repeats=2, tell=lambda *told: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.net.state_dict().items())
    return found


def test_what_was_not_timed_is_scaled_up_and_said_to_be(found: dict[str, Any]) -> None:
    told = found["paper"]
    assert told["evaluations"] == 3 * told["front_layers"] > told["evaluations_timed"] == 5
    assert told["extrapolated"]
    # Of two rounds a median is the mean, so parts add up.
    scaled = told["profile_seconds"] + told["seconds_per_evaluation"] * told["evaluations"]
    assert told["seconds"] == pytest.approx(scaled)
    assert told["with_losses"] > told["seconds"]


def test_ratios_are_to_the_whole_procedure(found: dict[str, Any]) -> None:
    for own in found["ours"].values():
        assert own["ratio"] == pytest.approx(found["paper"]["seconds"] / own["seconds"])
        assert own["ratio_with_losses"] > own["ratio"]
        searched = found["paper"]["seconds"] - found["paper"]["profile_seconds"]
        assert own["ratio_search"] == pytest.approx(
            searched / (own["seconds"] - own["profile_seconds"]), rel=1e-6
        )
        assert own["profile_seconds"] < own["seconds"]
    assert list(found["ours"]) == ["slug", "house"]


@pytest.mark.usefixtures("_tiny_methods")
def test_nothing_is_scaled_up_if_all_is_timed(tiny: ClipModel, inputs: UnlearnInputs) -> None:
    told = paper.compare(tiny, inputs, HOUSE, evaluations=0, repeats=1, tell=lambda *told: None)["paper"]
    assert told["evaluations_timed"] == told["evaluations"]
    assert not told["extrapolated"]


@pytest.mark.usefixtures("_tiny_methods")
def test_both_sides_are_warm_and_timed_in_every_round(
    tiny: ClipModel, inputs: UnlearnInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing: list[bool] = []
    ran: dict[str, list[bool]] = {"gradients": [], "profile": [], "losses": []}

    class Watched(Meter):
        def seconds(self, run: Callable[[], Any]) -> float:
            timing.append(True)
            try:
                return super().seconds(run)
            finally:
                timing.pop()

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*told: Any) -> Any:
            ran[name].append(bool(timing))
            return call(*told)

        return run

    monkeypatch.setattr(paper, "Meter", Watched)
    for module, name in ((procedure, "gradients"), (procedure, "losses"), (paper.methods, "profile")):
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))
    found = paper.compare(tiny, inputs, HOUSE, evaluations=1, repeats=3, tell=lambda *told: None)
    assert ran["gradients"] == ran["losses"] == [False, True, True, True]
    assert ran["profile"] == [False] * 2 + [True] * 6, "two methods"
    assert found["paper"]["evaluations_timed"] == 3, "one in every round"
    for own in (found["paper"], *found["ours"].values()):
        assert len(own["rounds"]) == 3
        assert own["seconds"] == median(parts["profile"] + parts["edit"] for parts in own["rounds"])
        assert own["profile_seconds"] == median(parts["profile"] for parts in own["rounds"])


def test_all_methods_see_the_house_s_micro_batch_and_slug_both_towers() -> None:
    ours = paper._ours(Method(name="slug-preconditioned", towers=("text",), micro_batch=7))
    assert {method.micro_batch for method in ours.values()} == {7}
    assert ours["slug"].towers == ("vision", "text")
    assert len(ours) == 3
