"""From item-level outcomes to named figures (see `gates.columns` for the names)."""

import dataclasses
from collections.abc import Iterator

import pandas as pd

from contracts.values import Drop, Measurements, Rate
from gates.columns import DEPTHS, PREFIX, STATES, WITH_DROP
from gates.intervals import paired_drop, rate
from gates.outcomes import check_outcomes


def measure(outcomes: pd.DataFrame, *, seed: int) -> Measurements:
    """Every rate and drop of one run.

    A group that is absent from the table yields no metric, so that a gate on it finds none and the
    verdict becomes "insufficient evidence".

    Raises:
        EvidenceError: the table fails `check_outcomes`.
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
    worst = _worst_neighbour(drops)
    if worst is not None:
        drops["neighbours.worst.ta1"] = worst
    return Measurements(rates, drops)


def _pair(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (group, direction, concept, cluster, item) with the ranks as columns before, after."""
    index = ["group", "direction", "concept", "cluster", "item"]
    # pivot sorts by the index, so the bootstrap does not depend on the order of the rows.
    return table.pivot(index=index, columns="state", values="rank").reset_index()


def _slices(paired: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, int, bool]]:
    """(metric name, its rows, k, whether it has a drop)."""
    for (group, direction), rows in paired.groupby(["group", "direction"], sort=True):
        prefix, accuracy = PREFIX[str(group)]
        metric = accuracy if direction == "i2t" else "t2i"
        for k in DEPTHS:
            yield f"{prefix}.{metric}{k}", rows, k, prefix in WITH_DROP
        if group == "neighbour" and direction == "i2t":
            for concept, own in rows.groupby("concept", sort=True):
                yield f"neighbour.{concept}.ta1", own, 1, True


def _worst_neighbour(drops: dict[str, Drop]) -> Drop | None:
    """The neighbour that lost most, with bounds that hold for the truly worst one.

    The largest of the upper bounds covers the worst true drop without any correction for picking:
    it is at least the bound of whichever neighbour is truly worst.  From below, the pooled drop's
    bound serves, for the worst is never better than the mean.
    """
    singles = [drop for name, drop in drops.items() if name.startswith("neighbour.")]
    if not singles:
        return None
    worst = max(singles, key=lambda drop: drop.estimate)
    return dataclasses.replace(
        worst,
        lower95=drops["neighbours.ta1"].lower95,
        upper95=max(drop.upper95 for drop in singles),
    )
