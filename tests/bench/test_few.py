"""Fewer forget images: some of the same ones, and a table that says how many."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bench.few import first, lines
from bench.summary import summarise
from contracts.errors import InputError
from tests.bench.test_comparison_table import row
from tests.unlearning.conftest import task  # noqa: F401 - a fixture


def test_fewer_images_are_some_of_the_same_with_their_captions(task) -> None:  # noqa: F811
    whole = task.inputs(2)
    captions = tuple(f"{caption} {i}" for i, caption in enumerate(whole.forget_captions))
    whole = replace(whole, forget_captions=captions)
    counts = range(1, len(captions) + 1)
    found = [first(whole, n, seed=3) for n in counts]
    assert [len(inputs.forget_images) for inputs in found] == list(counts)
    for fewer in found:
        rows = [captions.index(caption) for caption in fewer.forget_captions]
        assert np.array_equal(fewer.forget_images, whole.forget_images[rows])
        assert np.array_equal(fewer.forget_labels, whole.forget_labels[rows])
        assert fewer.retain_captions == whole.retain_captions
    for one, next_one in pairwise(found):
        assert set(one.forget_captions) < set(next_one.forget_captions)


@pytest.mark.parametrize("n", [0, 10_000])
def test_more_than_there_are_is_refused(task, n: int) -> None:  # noqa: F811
    with pytest.raises(InputError, match=f"{n} forget images were asked for"):
        first(task.inputs(2), n, seed=3)


def test_the_table_has_a_line_for_every_method_and_count() -> None:
    rows = [row("uce text", n, fa1=0.02 * n) for n in range(3)]
    found = {"uce text": {1: summarise(rows[:1]), 3: summarise(rows)}}
    _, _, one, three = lines(found)
    assert [cell.strip() for cell in one.split("|")][1:5] == ["`uce text`", "1", "1", "1"]
    assert [cell.strip() for cell in three.split("|")][1:7] == ["`uce text`", "3", "3", "3", "2.0 %", "4.0 %"]
