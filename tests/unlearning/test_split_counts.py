"""What every search split counts alike: who is known, and what is retained while it can be enough."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from unlearning.forgetting import Forgetting, mean_if
from unlearning.labels import rows_of


def test_an_item_is_known_while_its_margin_is_not_negative() -> None:
    margins, labels = torch.tensor([0.0, -1.0, 2.0, -3.0]), torch.tensor([5, 5, 7, 7])
    seen = Forgetting.of(margins, torch.tensor([1.0, 2.0, 3.0, 6.0]), labels, (5, 7), 0.0)
    assert (seen.rates, seen.rate, seen.score, seen.margin) == ({5: 0.5, 7: 0.5}, 0.5, 3.0, 2.0)
    # Half of each target's items may stay known: the next ones decide.
    assert Forgetting.of(margins, margins, labels, (5, 7), 0.5).margin == -1.0
    # Whatever is below 1 asks for one item at least.
    assert Forgetting.of(margins, margins, labels, (5, 7), 1 - 1e-10).margin == -1.0


def parts(looked: list[int], broken: int | None = None) -> Iterator[Tensor | None]:
    """Three parts of two, all retained in the first one only; which were looked at."""
    for part, found in enumerate(([1.0, 1.0], [0.0, 0.5], [0.0, 0.0])):
        looked.append(part)
        yield None if part == broken else torch.tensor(found)


def test_the_mean_is_looked_for_only_while_it_can_be_enough() -> None:
    looked: list[int] = []
    most: list[float] = []
    assert mean_if(parts(looked), 6, lambda rate: most.append(rate) or True) == pytest.approx(2.5 / 6)
    assert most == [1.0, 1.0, 4.5 / 6]
    assert looked == [0, 1, 2]
    for bound, expected in ((1.1, []), (0.8, [0, 1]), (0.7, [0, 1, 2])):
        looked = []
        found = mean_if(parts(looked), 6, lambda rate, bound=bound: rate >= bound)
        assert (found is None) == (bound > 0.75)
        assert looked == expected


def test_outputs_that_are_not_finite_retain_nothing() -> None:
    looked: list[int] = []
    assert mean_if(parts(looked, broken=1), 6, lambda rate: True) == 0.0
    assert looked == [0, 1]
    assert mean_if(iter([torch.tensor([True, False])]), 2, lambda rate: True) == 0.5


def test_rows_of_classes_come_in_order() -> None:
    assert rows_of(torch.tensor([2, 0, 1, 2]), (2, 1)).tolist() == [0, 2, 3]
