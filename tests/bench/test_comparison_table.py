"""Aggregates, winners and the page: a contender that does nothing is never the best."""

from collections.abc import Sequence
from typing import Any

import pytest

from bench.compare_plots import plots
from bench.compare_table import page
from bench.seeds import over_seeds
from bench.summary import aggregate, beaten, best, competitors


def row(label: str, number: int, fa1: float = 0.0, drop: float = 0.01, **changes: Any) -> dict[str, Any]:
    """A row of the contender's `number`-th request."""
    rate = {"before": {"estimate": 0.8}, "after": {"estimate": fa1}}
    kept = {"before": {"estimate": 0.6}, "after": {"estimate": 0.6 - drop}}
    return {
        "key": f"{label}{number}",
        "model": "reference",
        "request": f"single-{number}",
        "kind": "single",
        "label": label,
        "method": {"forget_at": 5, "forget_target": 0.0, "towers": ["text"]},
        "error": None,
        "verdict": "passed" if fa1 < 0.1 and drop < 0.05 else "failed",
        "erased": fa1 < 0.1,
        "reached_target": fa1 < 0.1,
        "rates": {"forget.fa1": rate, "forget.fa5": rate, "retain.ta1": kept},
        "drops": {"retain.ta1": {"estimate": drop}},
        "audits": {},
        "cost": {"cpu_seconds": 2.0, "wall_seconds": 2.0, "peak_growth_mib": 10.0},
        **changes,
    }


def probed(auc: float) -> dict[str, Any]:
    caught = {"estimate": auc - 0.5}
    return {
        "audits": {
            "probe": {
                "before": {"auc": 0.95, "caught": {"estimate": 0.9}},
                "after": {"auc": auc, "caught": caught},
            }
        }
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    idle = [row("idle", n, fa1=0.8, drop=0.0, cost={"cpu_seconds": 0.1}) for n in range(4)]
    house = [row("house", n, drop=d) for n, d in enumerate((0.0, 0.01, 0.02, 0.2))]
    rival = [row("rival", n, fa1=0.05, drop=0.002) for n in range(3)]
    broken = row("rival", 3, error={"class": "ModelError", "message": "x", "expected": True})
    for name in ("verdict", "erased", "rates", "drops", "audits", "cost"):
        del broken[name]
    return [*idle, *house, *rival, broken]


def test_medians_worst_cases_and_counts(rows: list[dict[str, Any]]) -> None:
    house = aggregate(rows)["single"]["contenders"]["house"]
    assert house["figures"]["ta1_drop"] == pytest.approx(0.015)
    assert house["figures"]["ta1_drop_p90"] == pytest.approx(0.146)
    assert house["verdicts"] == {"passed": 3, "failed": 1, "insufficient evidence": 0}


def test_an_error_counts_as_a_request_and_never_as_a_success(rows: list[dict[str, Any]]) -> None:
    rival = aggregate(rows)["single"]["contenders"]["rival"]
    assert (rival["n"], rival["verdicts"]["passed"], rival["errors"]) == (4, 3, {"ModelError": 1})
    assert rival["counts"]["fa1"] == 3


def test_who_erases_nothing_does_not_compete(rows: list[dict[str, Any]]) -> None:
    contenders = aggregate(rows)["single"]["contenders"]
    assert contenders["idle"]["figures"]["ta1_drop"] == 0.0
    assert competitors(contenders) == ["house", "rival"]
    assert best(contenders, "ta1_drop") == ["rival"]
    assert best(contenders, "cpu_seconds") == ["house", "rival"]


def test_nobody_is_the_best_for_a_few_requests_that_could_be_decided() -> None:
    def undecided(label: str, count: int) -> list[dict[str, Any]]:
        told = {"verdict": "insufficient evidence", "erased": False}
        return [row(label, 10 + n, drop=0.0, **told) for n in range(count)]

    lucky = [row("lucky", 0, drop=0.0), *undecided("lucky", 2)]
    half = [row("half", 0), *undecided("half", 1)]
    contenders = aggregate([*lucky, *half])["single"]["contenders"]
    assert competitors(contenders) == ["half"]
    assert best(contenders, "ta1_drop") == ["half"]
    assert beaten(contenders, "half") == {}, "lucky loses less, in one request of three"


def test_a_loss_short_of_the_target_is_told_by_how_often_it_was_reached() -> None:
    short = [row("short", n, reached_target=n == 0) for n in range(3)]
    gold = row("retrained", 0, method=None)
    del gold["reached_target"]
    text = page(told([*short, gold], 4))
    assert "| method | stop | n | reached | passed/failed/undecided |" in text
    assert "| `short` | top 5 | 3 | 1 of 3 | 3/0/0 |" in text
    assert "| `retrained` |  | 1 | – | 1/0/0 |" in text


def test_a_commit_with_changes_is_explained() -> None:
    text = page({**told([row("house", 0)], 1), "commits": ["0" * 40 + "+"]})
    assert f"commit {'0' * 40}+ (+: with uncommitted changes);" in text


def test_where_the_house_is_beaten_is_said(rows: list[dict[str, Any]]) -> None:
    contenders = aggregate(rows)["single"]["contenders"]
    assert beaten(contenders, "house") == {"ta1_drop": ["rival"], "ta1_drop_p90": ["rival"]}
    assert beaten(contenders, "rival") == {"fa1": ["house"], "fa1_worst": ["house"], "fa5": ["house"]}


def test_a_probe_is_best_where_it_finds_nothing_not_where_it_is_reversed() -> None:
    rows = [row("hidden", 0, **probed(0.52)), row("reversed", 0, **probed(0.2))]
    assert best(aggregate(rows)["single"]["contenders"], "probe") == ["hidden"]


def told(rows: list[dict[str, Any]], wanted: int, models: Sequence[str] = ("reference",)) -> dict[str, Any]:
    own = [each for each in rows if each["model"] == models[0]]
    return {
        "models": models,
        "provenance": {
            "command": "python -m bench.compare",
            "machine": {"cpu": "a processor", "cores": 2, "system": "linux"},
            "versions": {"python": "3.11"},
        },
        "asked": {
            "seed": 0,
            "threads": 1,
            "settings": {"relearn_steps": 50, "relearn_rate": 1e-4, "relearn_batch": 32},
        },
        "requests": {"single": {"asked": 4, "drawn": 4}, "style": {"asked": 10, "drawn": 6}},
        "family_sizes": [3, 15],
        "commits": ["0" * 40],
        "rows": len(rows),
        "wanted": wanted,
        "house": {"single": "house"},
        "kinds": aggregate(own),
        "seeds": over_seeds(rows, models) if len(models) > 1 else {},
    }


def test_the_page_marks_the_best_and_names_what_is_better_than_the_default(
    rows: list[dict[str, Any]],
) -> None:
    text = page(told(rows, len(rows)))
    assert "| `house` (house default) | top 5 | 4 | 4 of 4 | 3/1/0 | **0.0 %**" in text
    assert "**0.2 (n=3)**" in text  # the rival's loss, over three of its four requests
    assert "- TA@1 lost (1.5): `rival` 0.2" in text
    assert "- `rival`: 1 x ModelError" in text
    assert "styles 6 (of 10 asked: no more fit)" in text
    assert "not finished" not in text


def test_a_stop_that_lets_a_share_stay_says_so() -> None:
    eased = row("eased", 0, method={"forget_at": 1, "forget_target": 0.02, "towers": ["text"]})
    assert "| `eased` | top 1, 2% | 1 |" in page(told([eased], 1))


def test_an_unfinished_run_says_so(rows: list[dict[str, Any]]) -> None:
    assert "not finished" in page(told(rows, len(rows) + 1))


def test_training_seeds_are_told_as_mean_and_range_of_what_all_have(rows: list[dict[str, Any]]) -> None:
    # Given a second seed whose house loses 4 points more, and that has not got to the last request yet
    other = [row("house", n, drop=d, model="seed-8") for n, d in enumerate((0.04, 0.05, 0.06))]
    both = [*rows, *other]
    told_of = over_seeds(both, ["reference", "seed-8"])["single"]
    assert list(told_of) == ["house"], "a contender that only one model has seen has no range"
    lost = told_of["house"]["ta1_drop"]
    assert (lost["mean"], lost["low"], lost["high"]) == pytest.approx((0.03, 0.01, 0.05))
    assert told_of["house"]["n"] == 3
    assert told_of["house"]["passed"]["by_model"] == {"reference": 3, "seed-8": 1}
    text = page(told(both, len(both), ("reference", "seed-8")))
    assert "| `house` | 3 | 2.0 (1 to 3) | 0.0 % (0.0 % to 0.0 %)" in text
    assert "| 3.0 (1.0 to 5.0) |" in text
    assert "| `house` (house default) | top 5 | 4 | 4 of 4 | 3/1/0 |" in text, (
        "the main table is the model's own"
    )
    assert "Over training seeds" not in page(told(rows, len(rows)))


def test_with_which_retrained_model_a_row_was_compared_is_a_column(rows: list[dict[str, Any]]) -> None:
    assert "| retrained |" not in page(told(rows, len(rows)))
    union = [row("house", n, retrained="union of 9 concepts") for n in (1, 2)]
    gold = [row("house", 0, retrained="own"), *union]
    text = page(told(gold, len(gold)))
    assert "| passed/failed/undecided | retrained | FA@1 |" in text
    assert "| own: 1, union of 9 concepts: 2 |" in text


def test_figures_are_drawn_of_what_there_is(rows: list[dict[str, Any]]) -> None:
    assert set(plots(rows)) == {"forgetting-vs-collateral.svg", "verdicts.svg"}
    assert set(plots([row("house", 0, **probed(0.6))])) == {
        "forgetting-vs-collateral.svg",
        "verdicts.svg",
        "audits.svg",
    }
    assert plots([]) == {}
