"""A pass goes on from the nearest activations, and keeps none that nobody comes back to."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from unlearning.resumable_pass import Entering, ResumablePass


class Tower:
    """Stage i adds 10^i; which stages ran is written down."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, int | None]] = []

    def run(self, before: Tensor, first: int, last: int | None, micro_batch: int, /) -> Tensor:
        if first == last:
            return before
        self.ran.append((first, last))
        assert last is not None
        return before + sum(10**i for i in range(first, last))


@pytest.fixture
def tower() -> Tower:
    return Tower()


def resumable(tower: Tower, first_edit: int = 0) -> ResumablePass[Tensor]:
    return ResumablePass(tower, torch.zeros(2), micro_batch=1, first_edit=first_edit)


@pytest.mark.parametrize("first_edit", [0, 1, 2, 3])
@pytest.mark.parametrize("stages", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 1), (2, 2)])
def test_what_enters_a_stage_does_not_depend_on_where_the_pass_went_on_from(
    tower: Tower, first_edit: int, stages: tuple[int, ...]
) -> None:
    passing, passed = resumable(tower, first_edit), None
    for stage in stages:
        passed = passing.upto(stage, passed)
        assert passed.stage == stage
        assert passed.activations.tolist() == [sum(10**i for i in range(stage))] * 2


def test_what_enters_the_first_edit_is_computed_once(tower: Tower) -> None:
    passing = resumable(tower, first_edit=2)
    assert tower.ran == [(0, 2)]
    assert passing.upto(2).activations is passing.upto(2).activations
    assert tower.ran == [(0, 2)]


def test_an_earlier_stage_leaves_it_kept_and_a_later_one_lets_it_go(tower: Tower) -> None:
    passing = resumable(tower, first_edit=2)
    passing.upto(1)
    assert tower.ran == [(0, 2), (0, 1)]
    kept = weakref.ref(passing.upto(2).activations)
    assert kept() is not None
    gc.disable()  # it goes at once, not when the collector comes by
    try:
        passing.upto(3)
        assert kept() is None
    finally:
        gc.enable()
    assert tower.ran[2:] == [(2, 3)]
    passing.upto(2)
    assert tower.ran[3:] == [(0, 2)]


def test_the_nearer_of_what_is_kept_and_what_is_handed_in_is_gone_on_from(tower: Tower) -> None:
    passing = resumable(tower, first_edit=1)
    nearer, further, beyond = (Entering(i, torch.full((2,), float(i))) for i in (2, 0, 4))
    assert passing.upto(3, nearer).activations.tolist() == [102.0] * 2
    again = resumable(tower, first_edit=1)
    tower.ran.clear()
    assert again.upto(3, further).activations.tolist() == [111.0] * 2
    assert again.upto(3, beyond).activations.tolist() == [111.0] * 2
    assert tower.ran == [(1, 3), (0, 3)]


def test_no_gradient_is_recorded(tower: Tower) -> None:
    inputs = torch.zeros(2, requires_grad=True)
    assert not ResumablePass(tower, inputs, 1).upto(1).activations.requires_grad
