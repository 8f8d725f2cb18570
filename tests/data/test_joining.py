from dataclasses import replace

import pytest

from contracts.errors import InputError, SetError
from data.joining import join_sets
from data.layout import items_sha256, read_items
from data.shards import verify_shards
from data.writing import write_set


def write(folder, items, role="forget", personal=False, licence="CC0-1.0"):
    write_set(folder, role, items, personal=personal, licence=licence)
    return folder


def test_joined_sets_hold_every_item_once(tmp_path, some_items) -> None:
    items = some_items(5)
    parts = [
        write(tmp_path / "a", items[:3]),
        write(tmp_path / "b", items[2:], personal=True, licence="MIT"),
    ]

    summary = join_sets(parts, tmp_path / "joined")

    joined, whole = read_items(tmp_path / "joined"), read_items(write(tmp_path / "whole", items))
    assert items_sha256(joined) == items_sha256(whole)
    verify_shards(tmp_path / "joined", joined)
    assert (summary.n_items, summary.personal, summary.licence) == (5, True, "CC0-1.0; MIT")


def test_views_and_labels_survive(tmp_path, some_items) -> None:
    parts = [
        write(tmp_path / "a", some_items(2, views=(0, 3))),
        write(tmp_path / "b", some_items(2, first_seed=9, style="s-00000001")),
    ]

    join_sets(parts, tmp_path / "joined")

    joined = read_items(tmp_path / "joined")
    assert sorted(joined["view"]) == [0, 0, 0, 0, 3, 3]
    assert sorted(joined["style"]) == ["", "", "", "", "s-00000001", "s-00000001"]


def test_sets_of_different_roles_are_not_joined(tmp_path, some_items) -> None:
    parts = [
        write(tmp_path / "a", some_items(1)),
        write(tmp_path / "b", some_items(1, first_seed=5), role="holdout"),
    ]

    with pytest.raises(InputError, match="only sets of one role can be joined, got forget, holdout"):
        join_sets(parts, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_an_item_that_two_sets_label_differently_is_refused(tmp_path, some_items) -> None:
    """A picture of two people with one caption: each set would lose the other's label."""
    parts = [
        write(tmp_path / "a", some_items(2)),
        write(tmp_path / "b", [replace(item, object="c-0000000b") for item in some_items(2)]),
    ]

    with pytest.raises(SetError, match=r"item i-\w+ is labelled otherwise in another of the sets"):
        join_sets(parts, tmp_path / "joined")
