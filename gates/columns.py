"""The names of the figures: what a run yields and what a gate file may bound.

Rates    <prefix>.<metric>.before|after     forget.fa1.after, retain.ta5.before, control.fa1.after
Drops    <prefix>.<metric>                  retain.ta1, neighbours.ta1, neighbour.<concept id>.ta1,
                                            neighbours.worst.ta1 (the neighbour that lost most)
Columns  <rate>.<field of Rate>             forget.fa1.after.upper95
         <drop>.drop.<field of Drop>        retain.ta1.drop.upper95

cross.* is the retained accuracy on the other axis: hands for a request about an object, objects for one
about a hand (cross-domain retain accuracy, CRA, of UnlearnCanvas).

fa1/fa5 are forget accuracy @1/@5, ta1/ta5 retained accuracy (both image -> text); t2i1/t2i5 are the
share of class texts that find an image of their class among the first 1/5.
"""

import dataclasses
import re

from contracts.values import Drop, Measurements, Rate

DEPTHS = (1, 5)
STATES = ("before", "after")
# group of the outcome table -> (prefix of its metrics, name of its image -> text accuracy)
PREFIX = {
    "forget": ("forget", "fa"),
    "retain": ("retain", "ta"),
    "neighbour": ("neighbours", "ta"),
    "control": ("control", "fa"),
    "cross": ("cross", "ta"),
}
WITH_DROP = ("retain", "neighbours", "cross")

_ONE_NEIGHBOUR = re.compile(r"(?<=^neighbour\.)[cs]-[0-9a-f]{8}(?=\.)")
_RATE_FIELDS = tuple(f.name for f in dataclasses.fields(Rate))
_DROP_FIELDS = tuple(f.name for f in dataclasses.fields(Drop))


def flatten(measurements: Measurements) -> dict[str, float]:
    """One figure per column."""
    columns = {
        f"{name}.{field}": getattr(value, field)
        for name, value in measurements.rates.items()
        for field in _RATE_FIELDS
    }
    columns |= {
        f"{name}.drop.{field}": getattr(value, field)
        for name, value in measurements.drops.items()
        for field in _DROP_FIELDS
    }
    return columns


def known_columns() -> tuple[str, ...]:
    """Every column a gate file may name; `<concept id>` stands for any neighbour's opaque id."""
    rates = ["neighbour.<concept id>.ta1"]
    drops = ["neighbour.<concept id>.ta1", "neighbours.worst.ta1"]
    for prefix, accuracy in PREFIX.values():
        names = [f"{prefix}.{metric}{k}" for metric in (accuracy, "t2i") for k in DEPTHS]
        rates += names
        drops += names if prefix in WITH_DROP else []
    return (
        *(f"{name}.{state}.{field}" for name in rates for state in STATES for field in _RATE_FIELDS),
        *(f"{name}.drop.{field}" for name in drops for field in _DROP_FIELDS),
    )


def is_known(column: str) -> bool:
    """Whether a run can ever yield that column."""
    return _ONE_NEIGHBOUR.sub("<concept id>", column) in known_columns()
