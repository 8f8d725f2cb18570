"""Item-level rows of a grid, and UA / IRA / CRA, from a classifier's logits."""

import pandas as pd
import pytest
import torch

from contracts.errors import InputError
from gates.metrics import measure
from gates.outcomes import check_outcomes
from unlearning.grid_outcomes import Cell, Judged, canvas_rates, outcome_rows

OBJECTS = ("c-00000000", "c-00000001", "c-00000002")
STYLES = ("s-00000000", "s-00000001")
CELLS = [Cell(o, s, seed) for o in OBJECTS for s in STYLES for seed in (188, 288)]


def judged(objects: list[int], styles: list[int]) -> Judged:
    """Logits whose first choice is as given."""
    one_hot = [
        torch.nn.functional.one_hot(torch.tensor(v), n).float() for v, n in ((objects, 3), (styles, 2))
    ]
    return Judged({"object": one_hot[0], "style": one_hot[1]}, {"object": OBJECTS, "style": STYLES})


RIGHT = judged([0] * 4 + [1] * 4 + [2] * 4, [0, 0, 1, 1] * 3)
# Object 0 is drawn as object 1; one picture of object 2 loses its object, another one its style.
FORGOTTEN = judged([1] * 4 + [1] * 4 + [2, 2, 2, 0], [0, 0, 1, 1] * 2 + [0, 1, 1, 1])


def test_rates_are_those_of_the_benchmark() -> None:
    told = [RIGHT, FORGOTTEN]
    rows = [
        outcome_rows(CELLS, t, s, "object", OBJECTS[:1])
        for t, s in zip(told, ("before", "after"), strict=True)
    ]
    table = rows[0] + rows[1]
    assert canvas_rates(table, "before") == {"UA": 0.0, "IRA": 1.0, "CRA": 1.0}
    # Pictures of the forgotten object count for UA alone, also where their style is right.
    assert canvas_rates(table) == {"UA": 1.0, "IRA": 7 / 8, "CRA": 7 / 8}


def test_a_style_is_forgotten_with_the_axes_exchanged() -> None:
    rows = outcome_rows(CELLS, FORGOTTEN, "after", "style", STYLES[:1])
    # In the kept style three of six objects are wrong; its own style is always recognised.
    assert canvas_rates(rows) == pytest.approx({"UA": 1 / 6, "IRA": 1.0, "CRA": 3 / 6})


def test_rows_are_what_the_gates_read() -> None:
    rows = [
        row
        for state, told in (("before", RIGHT), ("after", FORGOTTEN))
        for row in outcome_rows(
            CELLS, told, state, "object", OBJECTS[:1], controls=OBJECTS[2:], neighbours=OBJECTS[1:2]
        )
    ]
    table = check_outcomes(pd.DataFrame(rows))
    assert set(table["group"]) == {"forget", "control", "retain", "neighbour", "cross"}
    figures = measure(table, seed=0)
    assert figures.rates["forget.fa1.before"].estimate == 1.0
    assert figures.rates["forget.fa1.after"].estimate == 0.0
    assert figures.rates["forget.fa1.after"].clusters == 2  # two prompts, each with two seeds
    assert figures.rates["control.fa1.after"].estimate == 0.75
    assert figures.drops["cross.ta1"].estimate == 0.0


def test_ties_are_read_against_us() -> None:
    flat = Judged({"object": torch.zeros(12, 3), "style": torch.zeros(12, 2)}, RIGHT.classes)
    ranks = {(r["group"], r["rank"]) for r in outcome_rows(CELLS, flat, "after", "object", OBJECTS[:1])}
    assert ranks == {("forget", 1), ("retain", 3), ("cross", 2)}


def test_cells_of_other_seeds_are_other_items_of_one_cluster() -> None:
    one, other = CELLS[:2]
    assert len({cell.item(axis) for cell in (one, other) for axis in ("object", "style")}) == 4
    assert one.cluster == other.cluster != CELLS[2].cluster


def test_what_the_classifier_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="c-99999999"):
        outcome_rows([Cell("c-99999999", STYLES[0], 1)], judged([0], [0]), "after", "object", OBJECTS[:1])
    with pytest.raises(InputError, match="do not match"):
        outcome_rows(CELLS[:3], RIGHT, "after", "object", OBJECTS[:1])
