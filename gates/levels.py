"""Qualities of a model's outputs in units of their own (PSNR in dB, SSIM), before and after.

The table of qualities has one row per (group, item, metric):

    item     opaque id of the item
    cluster  what was sampled: the crop of a photo that a degraded image was made of
    group    as in the outcome table (`gates.outcomes`)
    concept  opaque id of the true label
    metric   a word of `contracts.metrics.LEVELS`
    before   of the output of the pulled model
    after    of the output of the candidate
"""

import dataclasses
import re
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from contracts.errors import EvidenceError
from contracts.metrics import LEVELS, PREFIX
from contracts.values import Level
from gates.intervals import CONFIDENCE

COLUMNS = ("item", "cluster", "group", "concept", "metric", "before", "after")


def levels_of(qualities: pd.DataFrame) -> dict[str, Level]:
    """Every level by name: of every group, of every single neighbour, and of the one that lost most.

    Raises:
        EvidenceError: see `check_qualities`.
    """
    table = check_qualities(qualities)
    levels: dict[str, Level] = {}
    for name, rows in _slices(table):
        if rows["cluster"].nunique() > 1:  # from one no bound can be had: the figure is missing then
            levels[name] = level(rows)
    for metric in LEVELS:
        singles = [found for name, found in levels.items() if re.fullmatch(rf"neighbour\..+\.{metric}", name)]
        if singles:
            # As for drops: the largest bound covers the truly worst one, the pooled one bounds from below.
            levels[f"neighbours.worst.{metric}"] = dataclasses.replace(
                max(singles, key=lambda found: found.loss),
                lower95=levels[f"neighbours.{metric}"].lower95,
                upper95=max(found.upper95 for found in singles),
            )
    return levels


def check_qualities(table: pd.DataFrame) -> pd.DataFrame:
    """The table, if and only if every level on it can be trusted.

    Raises:
        EvidenceError: a column is missing, a word lies outside the vocabulary, a concept is no opaque id,
            a row is double, or a figure is not finite.  The message gives counts, never cell values.
    """
    missing = [c for c in COLUMNS if c not in table.columns]
    if missing:
        raise EvidenceError(f"the table of qualities lacks column {missing[0]!r}")
    table = table.loc[:, list(COLUMNS)].reset_index(drop=True)
    for column, words in (("group", tuple(PREFIX)), ("metric", tuple(LEVELS))):
        strange = int((~table[column].isin(words)).sum())
        _refuse(strange, f"rows have a {column} other than {', '.join(words)}")
    _refuse(
        int((~table["concept"].astype(str).str.fullmatch(r"[cs]-[0-9a-f]{8}")).sum()),
        "rows have a concept that is not an opaque id such as c-0a1b2c3d",
    )
    _refuse(
        int(table.duplicated(["group", "item", "metric"]).sum()), "rows are double (same group, item, metric)"
    )
    figures = table[["before", "after"]].to_numpy(dtype=np.float64)
    _refuse(int((~np.isfinite(figures)).any(axis=1).sum()), "rows have a NaN or infinite figure")
    return table


def level(rows: pd.DataFrame) -> Level:
    """Mean before and after, and the loss with one-sided 95 % bounds.

    Every cluster counts by its mean: degraded images of one crop are no independent trials.  Student's t
    takes the clusters' means as normal, which a few dozen of them are near enough; it says nothing about
    photos of another kind.
    """
    clusters = rows.groupby("cluster", sort=True)[["before", "after"]].mean()
    losses = (clusters["before"] - clusters["after"]).to_numpy(dtype=np.float64)
    before, after = (float(clusters[state].mean()) for state in ("before", "after"))
    n, loss = len(losses), before - after
    reach = float(student_t.ppf(CONFIDENCE, n - 1)) * float(losses.std(ddof=1)) / float(np.sqrt(n))
    return Level(len(rows), n, before, after, loss, loss - reach, loss + reach)


def _slices(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for (group, metric), rows in table.groupby(["group", "metric"], sort=True):
        yield f"{PREFIX[str(group)][0]}.{metric}", rows
        if group == "neighbour":
            for concept, own in rows.groupby("concept", sort=True):
                yield f"neighbour.{concept}.{metric}", own


def _refuse(count: int, what: str) -> None:
    if count:
        raise EvidenceError(f"the table of qualities is unusable: {count} {what}")
