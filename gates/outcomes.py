"""The item-level outcome table: what the model said about each held-out item, before and after.

One row per (group, item, question, state):

    item       opaque id of the item (i2t) or of the text query (t2i)
    cluster    what was sampled: the source drawing of an item, the concept of a text query
    group      forget | retain | neighbour | control | cross (kept, on the other axis)
    concept    opaque id of the true label
    question   i2t (image -> class texts) | t2i (class text -> images) | a word of `contracts.metrics.HITS`
    state      before (the pulled model) | after (the candidate)
    rank       1 = best; rank of the true label (i2t) or of the first right image (t2i); of a yes-or-no
               question 1 for yes and 2 for no

A neighbour is also a retained concept, so its items may stand in both groups; a forget or control
item stands in one group only.
"""

import re

import numpy as np
import pandas as pd

from contracts.errors import EvidenceError
from contracts.metrics import HITS, PREFIX, RANKED
from gates.columns import STATES

COLUMNS = ("item", "cluster", "group", "concept", "question", "state", "rank")
QUESTIONS = (*RANKED, *HITS)

_VOCABULARY = {"group": tuple(PREFIX), "question": QUESTIONS, "state": STATES}
_PAIR = ["group", "item", "question"]
# Concepts become metric names and so reach the certificate: a readable name must stop here.
_CONCEPT_ID = re.compile(r"[cs]-[0-9a-f]{8}")


def check_outcomes(table: pd.DataFrame) -> pd.DataFrame:
    """The table with integer ranks, if and only if every measurement on it can be trusted.

    Raises:
        EvidenceError: a column is missing, the table is empty, a cell is null, a word lies outside
            the vocabulary, a concept is not an opaque id, a rank is not a whole number >= 1, a row
            is double, a before/after partner is missing or contradicts, or a forget or control item
            stands in a second group.  The message gives counts, never cell values.
    """
    missing = [c for c in COLUMNS if c not in table.columns]
    if missing:
        raise EvidenceError(f"the outcome table lacks column {missing[0]!r}")
    if table.empty:
        raise EvidenceError("the outcome table has no rows")
    table = table.loc[:, list(COLUMNS)].reset_index(drop=True)
    _check_words(table)
    table = table.assign(rank=_whole_ranks(table["rank"]))
    _check_pairs(table)
    _check_groups(table)
    return table


def _check_words(table: pd.DataFrame) -> None:
    for column in COLUMNS[:-1]:
        bad = int((~table[column].map(lambda v: isinstance(v, str) and v != "")).sum())
        _refuse(bad, f"rows have no {column}")
    for column, words in _VOCABULARY.items():
        bad = int((~table[column].isin(words)).sum())
        _refuse(bad, f"rows have a {column} other than {', '.join(words)}")
    bad = int((~table["concept"].str.fullmatch(_CONCEPT_ID)).sum())
    _refuse(bad, "rows have a concept that is not an opaque id such as c-0a1b2c3d")


def _whole_ranks(rank: "pd.Series[float]") -> "pd.Series[int]":
    is_number = rank.map(lambda v: isinstance(v, int | float | np.number) and not isinstance(v, bool))
    _refuse(int((~is_number).sum()), "rows have a rank that is not a number")
    values = rank.astype("float64")
    _refuse(int((~np.isfinite(values)).sum()), "rows have a NaN or infinite rank")
    _refuse(int((values < 1).sum()), "rows have a rank below 1")
    _refuse(int((values % 1 != 0).sum()), "rows have a fractional rank")
    return values.astype("int64")


def _check_pairs(table: pd.DataFrame) -> None:
    key = [*_PAIR, "state"]
    _refuse(int(table.duplicated(key).sum()), "rows are double (same group, item, question and state)")
    pairs = table.groupby(_PAIR, sort=False)
    _refuse(int((pairs["state"].size() != 2).sum()), "items lack their before or after row")
    labels = pairs[["cluster", "concept"]].nunique()
    _refuse(int((labels != 1).any(axis=1).sum()), "items change cluster or concept between before and after")


def _check_groups(table: pd.DataFrame) -> None:
    groups = table.groupby(["item", "question"], sort=False)["group"].agg(set)
    exclusive = groups.map(lambda names: len(names) > 1 and not names <= {"retain", "neighbour"})
    _refuse(int(exclusive.sum()), "forget or control items also stand in another group")


def _refuse(count: int, what: str) -> None:
    if count:
        raise EvidenceError(f"the outcome table is unusable: {count} {what}")
