"""The outcome table fails closed, with counts and without cell values."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from contracts.errors import EvidenceError
from gates.outcomes import COLUMNS, check_outcomes

Edit = Callable[[pd.DataFrame], pd.DataFrame]


def _set(row: int, column: str, value: object) -> Edit:
    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return edit


def test_sound_table_comes_back_with_integer_ranks_whatever_the_row_order(outcomes: pd.DataFrame) -> None:
    shuffled = outcomes.sample(frac=1, random_state=1).astype({"rank": "float64"})
    checked = check_outcomes(shuffled)
    assert tuple(checked.columns) == COLUMNS
    assert checked["rank"].dtype == np.int64
    assert len(checked) == len(outcomes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.drop(columns="cluster"), "lacks column 'cluster'"),
        (lambda t: pd.concat([t, t.iloc[[0, 1]]]), "2 rows are double"),
        (lambda t: t.drop(index=[0, 3]), "2 items lack their before or after row"),
        (_set(0, "rank", np.nan), "1 rows have a NaN or infinite rank"),
        (_set(0, "rank", np.inf), "1 rows have a NaN or infinite rank"),
        (_set(0, "rank", None), "1 rows have a rank that is not a number"),
        (_set(0, "rank", "1"), "1 rows have a rank that is not a number"),
        (_set(0, "rank", True), "1 rows have a rank that is not a number"),
        (_set(0, "rank", 0), "1 rows have a rank below 1"),
        (_set(0, "rank", 1.5), "1 rows have a fractional rank"),
        (_set(0, "group", "forgotten"), "1 rows have a group other than"),
        (_set(0, "state", "middle"), "1 rows have a state other than"),
        (_set(0, "question", "t2t"), "1 rows have a question other than"),
        (_set(0, "item", None), "1 rows have no item"),
        (_set(0, "cluster", ""), "1 rows have no cluster"),
        (_set(0, "cluster", "d-other"), "1 items change cluster or concept"),
        (_set(0, "concept", "c-0000000a"), "1 items change cluster or concept"),
    ],
)
def test_unusable_table_is_refused(outcomes: pd.DataFrame, edit: Edit, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        check_outcomes(edit(outcomes))


def test_readable_concept_name_is_refused_and_not_repeated(outcomes: pd.DataFrame) -> None:
    outcomes["concept"] = outcomes["concept"].replace("c-000000f0", "jane doe")
    with pytest.raises(EvidenceError, match="not an opaque id") as caught:
        check_outcomes(outcomes)
    assert "jane" not in str(caught.value)


@pytest.mark.parametrize("second", ["retain", "neighbour", "control"])
def test_forget_item_in_a_second_group_is_refused(outcomes: pd.DataFrame, second: str) -> None:
    forget = outcomes[(outcomes.group == "forget") & (outcomes.question == "i2t")].head(4)
    with pytest.raises(EvidenceError, match="2 forget or control items also stand"):
        check_outcomes(pd.concat([outcomes, forget.assign(group=second)]))
