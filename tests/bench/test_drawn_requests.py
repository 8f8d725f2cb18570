"""Requests are drawn by seed, without repeats, and a longer run contains a shorter one."""

import pandas as pd
import pytest

from bench.requests import FAMILY_SIZES, KINDS, Kind, Request, draw
from contracts.values import Axis

SIZES = {"pair": 2, "drinks": 3, "tools": 7, "birds": 15, "crowd": 16}


@pytest.fixture
def labels() -> pd.DataFrame:
    rows = [(f"c-{family}{i:02}", "object", family) for family, n in SIZES.items() for i in range(n)]
    rows += [(f"s-{i}", "style", "hand") for i in range(4)]
    return pd.DataFrame(rows, columns=["id", "axis", "family"])


def drawn(
    labels: pd.DataFrame, seed: int = 0, sizes: range = FAMILY_SIZES, **counts: int
) -> tuple[Request, ...]:
    usable: dict[Axis, frozenset[str]] = {
        "object": frozenset(labels.loc[labels["axis"] == "object", "id"]),
        "style": frozenset(labels.loc[labels["axis"] == "style", "id"]),
    }
    asked: dict[Kind, int] = {kind: counts.get(kind, 0) for kind in KINDS}
    return draw(labels, usable, asked, seed, sizes)


def test_the_seed_alone_decides(labels: pd.DataFrame) -> None:
    counts = {"single": 10, "family": 2}
    shuffled = labels.sample(frac=1, random_state=1)
    assert drawn(labels, **counts) == drawn(shuffled, **counts)
    assert drawn(labels, **counts) != drawn(labels, seed=1, **counts)


def test_a_smaller_count_gives_the_first_of_a_larger_one(labels: pd.DataFrame) -> None:
    few, many = drawn(labels, single=3), drawn(labels, single=20)
    assert many[:3] == few


def test_the_count_of_one_kind_does_not_move_another(labels: pd.DataFrame) -> None:
    alone = drawn(labels, family=3)
    mixed = [request for request in drawn(labels, single=9, family=3) if request.kind == "family"]
    assert list(alone) == mixed


def test_families_are_whole_and_neither_tiny_nor_large(labels: pd.DataFrame) -> None:
    families = drawn(labels, family=10)
    assert sorted(len(request.targets) for request in families) == [3, 7, 15]


def test_families_can_be_picked_by_size_among_the_same_that_are_drawn(labels: pd.DataFrame) -> None:
    both = drawn(labels, single=2, family=2)
    large = [r for r in both if r.kind == "single" or len(r.targets) > 7]
    assert len(large) < len(both), "seed 0 draws the family of seven among its first two"
    assert list(drawn(labels, single=2, family=2, sizes=range(8, 16))) == large


def test_a_concept_that_cannot_be_requested_leaves_its_family(labels: pd.DataFrame) -> None:
    objects = frozenset(labels.loc[labels["axis"] == "object", "id"])
    usable: dict[Axis, frozenset[str]] = {"object": objects - {"c-drinks00"}, "style": frozenset()}
    families = draw(labels, usable, {"family": 10}, 0)
    assert sorted(len(request.targets) for request in families) == [7, 15]  # two drinks are too few


def test_nothing_is_drawn_twice_when_more_is_asked_than_there_is(labels: pd.DataFrame) -> None:
    styles = drawn(labels, style=10)
    assert sorted(request.targets for request in styles) == [(f"s-{i}",) for i in range(4)]


def test_kinds_alternate(labels: pd.DataFrame) -> None:
    kinds = [request.kind for request in drawn(labels, single=8, family=2, style=4)]
    assert set(kinds[:4]) == {"single", "family", "style"}


def test_names_differ_and_are_of_one_kind_and_id(labels: pd.DataFrame) -> None:
    requests = drawn(labels, single=20, family=3, style=4)
    assert len({request.name for request in requests}) == len(requests)
    assert Request("single", ("c-0a1b2c3d",)).name == "single-c-0a1b2c3d"
    assert Request("family", ("c-1", "c-2")).name != Request("family", ("c-1", "c-3")).name
