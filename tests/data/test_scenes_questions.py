"""Colours and copies computed from pixels, and the questions made of them."""

import numpy as np
import pandas as pd
import pytest

from data.questions import COLOUR, COUNT, KIND, NAME, NUMBERS, Questions, kind_of, utility_set
from data.scenes import dominant_colour, scene

RGB = {
    "red": (221, 46, 68),
    "orange": (244, 144, 12),
    "yellow": (255, 204, 77),
    "green": (92, 145, 59),
    "blue": (85, 172, 238),
    "purple": (146, 102, 204),
    "brown": (138, 75, 56),
    "black": (20, 20, 24),
    "grey": (135, 138, 140),
}


def square(colour, side=32, inner=20):
    """A coloured square on nothing."""
    drawing = np.zeros((side, side, 4), dtype=np.uint8)
    at = slice((side - inner) // 2, (side + inner) // 2)
    drawing[at, at] = (*colour, 255)
    return drawing


@pytest.mark.parametrize("name", RGB)
def test_a_plain_drawing_has_the_colour_that_people_call_it(name):
    assert dominant_colour(square(RGB[name])) == name


def test_a_colour_is_told_only_where_it_covers_most_and_is_seen_on_white():
    half = square(RGB["red"])
    half[:, 12:] = np.where(half[:, 12:, 3:] > 0, (*RGB["blue"], 255), 0)
    assert dominant_colour(half) == "blue"
    thirds = square(RGB["red"])
    thirds[:, 12:19] = np.where(thirds[:, 12:19, 3:] > 0, (*RGB["blue"], 255), 0)
    thirds[:, 19:] = np.where(thirds[:, 19:, 3:] > 0, (*RGB["green"], 255), 0)
    assert dominant_colour(thirds) is None
    assert dominant_colour(square((255, 255, 255))) is None
    assert dominant_colour(np.zeros((8, 8, 4), dtype=np.uint8)) is None
    faint = square(RGB["red"])
    faint[..., 3] = np.minimum(faint[..., 3], 100)
    assert dominant_colour(faint) is None


def components(picture):
    """The number of connected regions that are not white."""
    from scipy.ndimage import label

    return label((picture < 128).any(-1))[1]


@pytest.mark.parametrize("copies", [1, 2, 3, 4])
def test_a_scene_holds_so_many_whole_copies(copies):
    for seed in range(10):
        picture = scene(square(RGB["black"]), copies, 48, np.random.default_rng(seed))
        assert picture.shape == (48, 48, 3)
        assert picture.dtype == np.uint8
        assert components(picture) == copies


@pytest.mark.parametrize("copies", [0, 5])
def test_other_numbers_of_copies_are_refused(copies):
    with pytest.raises(ValueError, match=f"got {copies}"):
        scene(square(RGB["red"]), copies, 48, np.random.default_rng(0))


@pytest.fixture
def asked_about():
    rows = [(name, "sky & weather" if name == "sun" else "animal-bird") for name in ("sun", "owl", "duck")]
    drawings = pd.DataFrame(rows, columns=["name", "family"])
    pixels = np.stack([square(RGB[c]) for c in ("yellow", "brown", "green")])
    options = {
        "seed": 1,
        "batch": 40,
        "image_size": 32,
        "scene_share": 0.5,
        "kind_share": 0.2,
        "yes_no_share": 0.3,
    }
    return Questions(drawings, pixels, options), drawings, pixels


def test_every_answer_is_right(asked_about):
    questions, drawings, _ = asked_about
    colours, kinds = ("yellow", "brown", "green"), set()
    for step in range(10):
        batch = questions.draw(step)
        assert len(batch.questions) == len(batch.answers) == len(batch.rows) == 40
        assert batch.scenes.shape == (20, 32, 32, 3)
        for i, (row, question, answer) in enumerate(
            zip(batch.rows, batch.questions, batch.answers, strict=True)
        ):
            name = drawings["name"][row]
            of_scene = i >= 20
            if question in NAME:
                kinds.add("name")
                assert answer == ("an owl" if name == "owl" else f"a {name}")
            elif question in KIND:
                kinds.add("kind")
                assert answer == ("sky and weather" if name == "sun" else "animal bird")
            elif question in COLOUR:
                kinds.add("colour")
                assert answer == colours[row]
            elif question in COUNT:
                kinds.add("count")
                assert NUMBERS.index(answer) + 1 == components(batch.scenes[i - 20])
            else:
                kinds.add(answer)
                assert question.endswith(f" {name}?") == (answer == "yes")
            assert of_scene == (question in (*COLOUR, *COUNT))
    assert kinds == {"name", "kind", "colour", "count", "yes", "no"}


def test_a_batch_follows_from_seed_and_step_and_its_words_are_known(asked_about):
    questions, _, _ = asked_about
    one, same, other = (questions.draw(step) for step in (3, 3, 4))
    assert one.questions == same.questions
    assert np.array_equal(one.scenes, same.scenes)
    assert one.questions != other.questions
    known = {word for text in questions.texts() for word in text.replace("?", " ?").split()}
    said = [*one.questions, *one.answers, *other.questions, *other.answers]
    assert {word for text in said for word in text.replace("?", " ?").split()} <= known


def test_the_utility_set_follows_from_the_drawings_alone():
    colours = ("red", "green", "blue")
    drawings = [square(RGB[c]) for c in colours] + [square((255, 255, 255))]
    items = pd.DataFrame(
        {"sha256": [f"{i:064x}" for i in range(4)], "source": "s", "object": [f"c-{i:08x}" for i in range(4)]}
    )
    asked = utility_set(items, drawings, 48)
    assert asked.table["kind"].tolist() == ["colour", "count"] * 3 + ["count"]  # white is not asked for
    assert asked.table.loc[asked.table["kind"] == "colour", "answer"].tolist() == list(colours)
    assert asked.table["item"].is_unique
    assert asked.pictures.shape == (7, 48, 48, 3)
    for picture, row in zip(asked.pictures[1:6:2], asked.table.iloc[1:6:2].itertuples(), strict=True):
        assert NUMBERS.index(row.answer) + 1 == components(picture)
    backwards = utility_set(items[::-1], drawings[::-1], 48)
    order = [backwards.table["item"].tolist().index(item) for item in asked.table["item"]]
    assert np.array_equal(backwards.pictures[order], asked.pictures)
    empty = utility_set(items[:0], [], 48)
    assert empty.table.empty
    assert empty.pictures.shape == (0, 48, 48, 3)


def test_families_in_words():
    assert [kind_of(own) for own in ("sky & weather", "food-fruit")] == ["sky and weather", "food fruit"]
