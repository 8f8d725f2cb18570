"""Methods on a vision-language model: what is drawn, what each is told, and what a line says."""

import pandas as pd
import pytest

from bench.vlm import VARIANTS, drawn, line, summary
from contracts.canonical import from_plain
from contracts.values import Method
from unlearning import methods

SIZES = {"pair": 2, "drinks": 3, "tools": 7}


@pytest.fixture
def labels() -> pd.DataFrame:
    rows = [(f"c-{family}{i}", "object", family, True) for family, n in SIZES.items() for i in range(n)]
    rows += [("c-unseen", "object", "tools", False), ("s-ink", "style", "hand", True)]
    return pd.DataFrame(rows, columns=["id", "axis", "family", "seen"])


def pictured(labels: pd.DataFrame) -> frozenset[str]:
    return frozenset(labels.loc[labels["seen"] & (labels["axis"] == "object"), "id"])


def test_names_come_from_the_vocabulary_and_families_whole(labels: pd.DataFrame) -> None:
    found = drawn(labels, pictured(labels), (100, 100), seed=0)
    singles = [request.targets for request in found if request.kind == "single"]
    assert sorted(singles) == [(name,) for name in sorted(pictured(labels))]
    families = [request.targets for request in found if request.kind == "family"]
    assert sorted(map(len, families)) == [3, 7]  # two are no family, and what was never seen is in none


def test_families_do_not_move_the_names(labels: pd.DataFrame) -> None:
    alone = drawn(labels, pictured(labels), (4, 0), seed=3)
    assert len(alone) == 4
    assert drawn(labels, pictured(labels), (4, 1), seed=3)[:4] == alone
    assert drawn(labels, pictured(labels), (4, 0), seed=4) != alone


def test_every_variant_is_told_what_its_method_accepts() -> None:
    for told in VARIANTS.values():
        methods.check(from_plain(Method, {"towers": ["vision"], **told}), n_classes=405, family="vlm")


def test_a_line_says_what_was_asked_and_what_came_of_it() -> None:
    row = {
        "request": "family-0", "kind": "family", "names": 7, "method": "scrub", "verdict": "failed",
        "layers": ["visual.a", "visual.b"], "cpu_seconds": 42.0,
        "forget.named_before": 0.5, "forget.named_after": 0.025,
        "retain.named_before": 0.64, "retain.named_after": 0.61,
    }  # fmt: skip
    assert "family-0 (7) scrub" in line(row)
    assert "forget.named 50.0% -> 2.5%" in line(row)
    told = summary("scrub", [row, {**row, "retain.named_after": 0.63, "verdict": "passed"}])
    assert "'failed': 1" in told
    assert "'passed': 1" in told
    assert "names lost 2.0 points" in told
