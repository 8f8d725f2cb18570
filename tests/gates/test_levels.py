"""Levels: qualities in units of their own, their losses and bounds."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from contracts.errors import EvidenceError
from gates.levels import levels_of

SNOW, FOG = "c-0000000a", "c-0000000b"


def table(group: str, concept: str, before: list[float], after: list[float], views: int = 1) -> pd.DataFrame:
    n = len(before)
    return pd.DataFrame(
        {
            "item": [f"i-{group}{concept}{i}" for i in range(n)],
            "cluster": [f"crop-{i // views}" for i in range(n)],
            "group": group,
            "concept": concept,
            "metric": "psnr",
            "before": before,
            "after": after,
        }
    )


def test_bounds_are_those_of_the_paired_one_sided_t_test() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(30, 2, 25), rng.normal(29, 2, 25)
    found = levels_of(table("retain", SNOW, list(before), list(after)))["retain.psnr"]

    assert found.loss == pytest.approx(before.mean() - after.mean())
    # At the bound the one-sided test is just as sure as 95 %.
    assert ttest_rel(before - found.upper95, after, alternative="less").pvalue == pytest.approx(0.05)
    assert ttest_rel(before - found.lower95, after, alternative="greater").pvalue == pytest.approx(0.05)


def test_images_of_one_crop_count_once() -> None:
    # given ten crops, each degraded in four ways that lose the same
    losses = np.repeat(np.linspace(0, 1, 10), 4)
    fours = levels_of(table("retain", SNOW, [30.0] * 40, list(30 - losses), views=4))["retain.psnr"]
    ones = levels_of(table("retain", SNOW, [30.0] * 10, list(30 - losses[::4])))["retain.psnr"]
    # then four times as many images make no bound tighter
    assert (fours.n, fours.clusters) == (40, 10)
    assert fours.upper95 == pytest.approx(ones.upper95)


def test_the_worst_neighbour_has_its_own_loss_and_the_widest_bound() -> None:
    calm = table("neighbour", SNOW, [30.0] * 6, [30.1, 29.9] * 3)
    hurt = table("neighbour", FOG, [30.0] * 6, [28.0, 26.0] * 3)
    found = levels_of(pd.concat([calm, hurt]))
    worst = found["neighbours.worst.psnr"]
    assert worst.loss == found[f"neighbour.{FOG}.psnr"].loss == pytest.approx(3.0)
    assert worst.upper95 == found[f"neighbour.{FOG}.psnr"].upper95
    assert worst.lower95 == found["neighbours.psnr"].lower95


def test_one_crop_has_no_level() -> None:
    found = levels_of(table("retain", SNOW, [30.0, 31.0], [30.0, 31.0], views=2))
    assert found == {}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"metric": "sharpness"}, "metric other than"),
        ({"group": "holdout"}, "group other than"),
        ({"concept": "a name"}, "not an opaque id"),
        ({"after": float("nan")}, "NaN or infinite"),
        ({"before": float("inf")}, "NaN or infinite"),
        ({"item": "i-same"}, "double"),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(change: dict[str, object], problem: str) -> None:
    rows = table("retain", SNOW, [30.0, 31.0], [29.0, 30.0]).assign(**change)
    with pytest.raises(EvidenceError, match=problem) as refused:
        levels_of(rows)
    assert "a name" not in str(refused.value)
    with pytest.raises(EvidenceError, match="lacks column 'after'"):
        levels_of(rows.drop(columns="after"))
