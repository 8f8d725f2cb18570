"""A small outcome table with known figures, and measurements that pass the default suite."""

import pandas as pd
import pytest

from contracts.values import Measurements
from gates.metrics import measure

FORGOTTEN = "c-000000f0"
CONTROL = "c-00000c00"


def rows(
    group: str, concept: str, ranks: list[tuple[int, int]], *, question: str = "i2t", views: int = 1
) -> list[dict[str, object]]:
    """One item per (rank before, rank after); `views` items in a row share a drawing."""
    return [
        {
            "item": f"i-{group[:1]}{question}{concept}{i}",
            "cluster": f"d-{concept}{i // views}",
            "group": group,
            "concept": concept,
            "question": question,
            "state": state,
            "rank": rank,
        }
        for i, pair in enumerate(ranks)
        for state, rank in zip(("before", "after"), pair, strict=True)
    ]


@pytest.fixture(scope="session")
def _outcomes() -> pd.DataFrame:
    """An erasure that worked: 60 forget items gone, 300 retained kept, two unharmed neighbours."""
    neighbours = [
        *rows("neighbour", "c-0000000a", [(1, 1)] * 19 + [(1, 2)]),
        *rows("neighbour", "c-0000000b", [(1, 1)] * 20),
    ]
    return pd.DataFrame(
        [
            *rows("forget", FORGOTTEN, [(1, 50)] * 50 + [(3, 9)] * 10, views=10),
            *rows("retain", "c-00000001", [(1, 1)] * 200 + [(4, 4)] * 98 + [(1, 2)] * 2),
            *neighbours,
            *({**row, "group": "retain"} for row in neighbours),
            *rows("control", CONTROL, [(40, 40)] * 60),
            *rows("cross", "s-00000001", [(1, 1)] * 100 + [(2, 2)] * 20),
            *rows("forget", FORGOTTEN, [(1, 30)], question="t2i"),
            *rows("retain", "c-00000001", [(1, 1), (2, 1), (9, 9)], question="t2i"),
        ]
    )


@pytest.fixture
def outcomes(_outcomes: pd.DataFrame) -> pd.DataFrame:
    return _outcomes.copy()


@pytest.fixture(scope="session")
def measurements(_outcomes: pd.DataFrame) -> Measurements:
    return measure(_outcomes, seed=0)
