"""Stage `split`: nobody sees what the verdict is computed on.  Checked on the sets that are shipped."""

from itertools import combinations
from pathlib import Path

import pandas as pd
import pytest
import yaml

from data.layout import read_items, style_id
from data.neighbours import nearest
from data.pins import PinnedRepo

REPO = Path(__file__).parents[2]
PARAMS = yaml.safe_load((REPO / "params.yaml").read_text())["split"]
SETS = ("pool", "retain", "search", "holdout", "control", "style-search", "style-holdout", "style-control")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped sets as data frames, and the labels, fetched from the remote inside the repository."""
    folder = tmp_path_factory.mktemp("shipped")
    with PinnedRepo(REPO) as pinned:
        for name in SETS:
            pinned.fetch_set(pinned.pin_set(f"data/sets/{name}"), folder / name)
        pinned.fetch_path("data/labels", folder / "labels")
    frames = {name: read_items(folder / name) for name in SETS}
    return frames, pd.read_parquet(folder / "labels" / "labels.parquet")


def styles(names):
    return {style_id(name) for name in names}


@pytest.mark.parametrize(("one", "other"), [*combinations(SETS, 2)])
def test_no_item_and_no_drawing_stands_in_two_splits(shipped, one, other):
    frames, _ = shipped
    for column in ("id", "sha256", "source"):
        assert not set(frames[one][column]) & set(frames[other][column])


def test_the_holdout_hands_are_never_trained_on_and_never_searched_on(shipped):
    frames, _ = shipped
    held = styles(PARAMS["holdout_styles"])
    assert len(held) >= 2
    assert set(frames["holdout"]["style"]) == held
    for name in ("pool", "retain", "search", "style-search"):
        assert not set(frames[name]["style"]) & held


def test_the_hands_outside_the_sets_are_neither_searched_nor_held_out():
    train = yaml.safe_load((REPO / "params.yaml").read_text())["train"]
    more = {*train["redrawn_styles"], *train["icon_styles"]}
    assert not more & {*PARAMS["train_styles"], *PARAMS["search_styles"], *PARAMS["holdout_styles"]}


def test_the_holdout_covers_every_concept_in_every_held_out_hand(shipped):
    frames, labels = shipped
    known = set(labels.loc[labels["seen"] & (labels["axis"] == "object"), "id"])
    drawn = frames["holdout"].drop_duplicates(["object", "style"])
    assert len(known) >= 400
    assert set(drawn["object"]) == known
    assert len(drawn) == len(known) * len(PARAMS["holdout_styles"])


def test_nobody_trains_or_searches_on_a_control(shipped):
    frames, labels = shipped
    controls = set(labels.loc[~labels["seen"] & (labels["axis"] == "object"), "id"])
    assert len(controls) == PARAMS["controls"]
    assert set(frames["control"]["object"]) <= controls
    for name in ("pool", "retain", "search", "style-search"):
        assert not set(frames[name]["object"]) & controls
    assert not labels.set_index("id").loc[sorted(controls), "seen"].any()


def test_no_control_is_named_by_words_that_the_model_knows(shipped):
    frames, labels = shipped
    names = labels[labels["axis"] == "object"].set_index("id")
    words = {word for name in names.loc[names["seen"], "name"] for word in name.split()}
    unknown = names.loc[sorted(set(frames["control"]["object"])), "name"]
    assert len(unknown) >= 5
    assert not [name for name in unknown if words & set(name.split())]
    # Negative control: chance did draw names of known words, so leaving them out is not for nothing.
    assert [name for name in names.loc[~names["seen"], "name"] if words & set(name.split())]


def test_a_style_is_judged_on_objects_that_neither_training_nor_search_saw(shipped):
    frames, _ = shipped
    seen = {o for name in ("pool", "retain", "search", "style-search") for o in frames[name]["object"]}
    assert not set(frames["style-holdout"]["object"]) & seen
    assert set(frames["style-holdout"]["style"]) == styles(PARAMS["train_styles"])


def test_neighbours_are_of_the_family_first_and_share_words():
    rows = [
        ("red apple", "c-1", "fruit", ["food"]),
        ("green apple", "c-2", "fruit", ["food"]),
        ("pear", "c-3", "fruit", ["food"]),
        ("apple phone", "c-4", "phone", ["food"]),
    ]
    drawings = pd.DataFrame(rows, columns=["name", "object", "family", "keywords"]).assign(style="s-1")
    table = nearest(drawings, 3)
    mine = table[table["concept"] == "c-1"].sort_values("rank")
    assert mine["neighbour"].tolist() == ["c-2", "c-3", "c-4"]
