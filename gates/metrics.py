"""From item-level outcomes to named figures (see `gates.columns` for the names)."""

import dataclasses
from collections.abc import Iterator

import pandas as pd

from contracts.metrics import OF_EACH_NEIGHBOUR, PREFIX, metrics_of
from contracts.values import Drop, Level, Measurements, Rate
from gates.columns import STATES, WITH_DROP
from gates.intervals import paired_drop, rate
from gates.levels import levels_of
from gates.outcomes import check_outcomes


def measure(outcomes: pd.DataFrame, *, seed: int, qualities: pd.DataFrame | None = None) -> Measurements:
    """Every rate and drop of one run, and every level if there are `qualities` (`gates.levels`).

    A group that is absent from the table yields no metric, so that a gate on it finds none and the
    verdict becomes "insufficient evidence".

    Raises:
        EvidenceError: a table fails `check_outcomes`, or `gates.levels.check_qualities`.
    """
    paired = _pair(check_outcomes(outcomes))
    rates: dict[str, Rate] = {}
    drops: dict[str, Drop] = {}
    for name, rows, depth, with_drop in _slices(paired):
        clusters = rows["cluster"].to_numpy(dtype=str)
        hit = {state: (rows[state] <= depth).to_numpy(dtype=bool) for state in STATES}
        for state in STATES:
            rates[f"{name}.{state}"] = rate(hit[state], clusters)
        if with_drop:
            drops[name] = paired_drop(hit["before"], hit["after"], clusters, seed=seed)
    for metric in OF_EACH_NEIGHBOUR:
        worst = _worst_neighbour(drops, metric)
        if worst is not None:
            drops[f"neighbours.worst.{metric}"] = worst
    levels: dict[str, Level] = {} if qualities is None else levels_of(qualities)
    return Measurements(rates, drops, levels)


def _pair(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (group, question, concept, cluster, item) with the ranks as columns before, after."""
    index = ["group", "question", "concept", "cluster", "item"]
    # pivot sorts by the index, so the bootstrap does not depend on the order of the rows.
    return table.pivot(index=index, columns="state", values="rank").reset_index()


def _slices(paired: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int, bool]]:
    """(metric name, its rows, k, whether it has a drop)."""
    for (group, question), rows in paired.groupby(["group", "question"], sort=True):
        prefix, _ = PREFIX[str(group)]
        for metric, depth in metrics_of(str(group), str(question)).items():
            yield f"{prefix}.{metric}", rows, depth, prefix in WITH_DROP
            if group == "neighbour" and metric in OF_EACH_NEIGHBOUR:
                for concept, own in rows.groupby("concept", sort=True):
                    yield f"neighbour.{concept}.{metric}", own, depth, True


def _worst_neighbour(drops: dict[str, Drop], metric: str) -> Drop | None:
    """The neighbour that lost most, with bounds that hold for the truly worst one.

    The largest of the upper bounds covers the worst true drop without any correction for picking:
    it is at least the bound of whichever neighbour is truly worst.  From below, the pooled drop's
    bound serves, for the worst is never better than the mean.
    """
    singles = [
        drop for name, drop in drops.items() if name.startswith("neighbour.") and name.endswith(f".{metric}")
    ]
    if not singles:
        return None
    worst = max(singles, key=lambda drop: drop.estimate)
    return dataclasses.replace(
        worst,
        lower95=drops[f"neighbours.{metric}"].lower95,
        upper95=max(drop.upper95 for drop in singles),
    )
