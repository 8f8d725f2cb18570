"""SLUG without a CLIP: profiles from the denoising loss, edits judged by drawn pictures."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from contracts.errors import InputError
from tests.unlearning.conftest import items
from tests.unlearning.families.conftest import diffusion
from unlearning.denoising import Draws
from unlearning.drawn_search import DrawnSearch, cells
from unlearning.drawn_slug import Choice, DrawnInputs, edit, profile
from unlearning.families.clip import ClipModel
from unlearning.families.diffusion import DiffusionModel

CONCEPT = "c-00000000"
INPUTS = DrawnInputs(
    items(1, seed=3, labels=range(2))[0],
    ["a red square", "a drawing of a red square"],
    ["a square", "a drawing of a square"],
    items(1, seed=4, labels=range(2, 6))[0],
    ["a blue cross", "a green square", "a yellow cross", "a drawing"],
    Draws(count=2),
)


@pytest.fixture
def alone(make_model: Callable[..., ClipModel]) -> DiffusionModel:
    sampling = {"size": 16, "steps": 2, "guidance": 1.0}
    return diffusion(make_model("vit"), whole=False, sampling=sampling)


class Distance:
    """A judge that takes pictures near the ones it was shown first for the concept."""

    def __init__(self) -> None:
        self.first: torch.Tensor | None = None

    def __call__(self, images: Any) -> torch.Tensor:
        pictures = torch.as_tensor(images).double()
        if self.first is None:
            self.first = pictures
        near = 0.05 - (pictures - self.first[: len(pictures)]).abs().mean((1, 2, 3))
        return torch.stack([near, -near], 1)


@pytest.mark.parametrize("epsilon", [None, 0.01])
def test_a_profile_and_an_edit_change_one_named_tensor(alone: DiffusionModel, epsilon: float | None) -> None:
    said: list[str] = []
    choice = Choice(epsilon, layers=2, cross_attention=True, micro_batch=2)
    found = profile(alone, CONCEPT, INPUTS, choice, lambda what, done, total: said.append(what))
    candidates = [c for c in alone.candidates(True) if epsilon is None or len(c.shape) > 1]
    assert [s.layer for s in found.scores[CONCEPT]] == [c.name for c in candidates]
    assert {s.tower for s in found.scores[CONCEPT]} == {"text", "vision"}
    front = {s.layer for s in found.scores[CONCEPT] if s.on_front}
    assert front == set(found.directions[CONCEPT])
    assert epsilon is None or len(front) == 2

    before = {name: value.clone() for name, value in alone.net.state_dict().items()}
    search = DrawnSearch(
        cells(["a red square"], [1], [0]), cells(["a blue cross"], [1], [1]), Distance(), budget=8
    )
    outcome = edit(alone, CONCEPT, found, search, lambda what, done, total: said.append(what))
    changed = {n for n, value in alone.net.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {e.layer for e in outcome.edits} <= front
    assert outcome.reached_target == (min(t.forget_rate for t in outcome.trials) == 0.0)
    assert set(said) == {"retain gradient", "forget gradient", "step search"}


def test_options_and_profiles_that_do_not_fit_are_refused(alone: DiffusionModel) -> None:
    with pytest.raises(InputError, match="epsilon"):
        Choice(epsilon=0.0)
    with pytest.raises(InputError, match="layers"):
        Choice(layers=0)
    found = profile(alone, CONCEPT, INPUTS, Choice(0.1, layers=1), lambda *args: None)
    search = DrawnSearch(cells(["a"], [1], [0]), cells(["b"], [1], [1]), Distance())
    with pytest.raises(InputError, match="another concept"):
        edit(alone, "c-00000001", found, search, lambda *args: None)
