"""The names of the figures: what a run yields and what a gate file may bound.

Rates    <prefix>.<metric>.before|after     forget.fa1.after, retain.ta5.before, control.restored.after
Drops    <prefix>.<metric>                  retain.ta1, neighbours.ta1, neighbour.<concept id>.ta1,
                                            neighbours.worst.ta1 (the neighbour that lost most)
Levels   <prefix>.<metric>                  retain.psnr, neighbours.worst.psnr
Columns  <rate>.<field of Rate>             forget.fa1.after.upper95
         <drop>.drop.<field of Drop>        retain.ta1.drop.upper95
         <level>.loss.<field of Level>      retain.psnr.loss.upper95

cross.* is the retained accuracy on the other axis: hands for a request about an object, objects for one
about a hand (cross-domain retain accuracy, CRA, of UnlearnCanvas); of a restorer clean images, of a
vision-language model questions that ask for no name.

What hits and levels are says `contracts.metrics`.

fa1/fa5 are forget accuracy @1/@5, ta1/ta5 retained accuracy (both image -> text); t2i1/t2i5 are the
share of class texts that find an image of their class among the first 1/5.
"""

import dataclasses
import re

from contracts.metrics import HITS, LEVELS, OF_EACH_NEIGHBOUR, PREFIX, RANKED, metrics_of
from contracts.values import Drop, Level, Measurements, Rate

STATES = ("before", "after")
WITH_DROP = ("retain", "neighbours", "cross")

_ONE_NEIGHBOUR = re.compile(r"(?<=^neighbour\.)[cs]-[0-9a-f]{8}(?=\.)")
_ANY_NEIGHBOUR = "neighbour.<concept id>"
_RATE_FIELDS = tuple(f.name for f in dataclasses.fields(Rate))
_DROP_FIELDS = tuple(f.name for f in dataclasses.fields(Drop))
_LEVEL_FIELDS = tuple(f.name for f in dataclasses.fields(Level))


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
    columns |= {
        f"{name}.loss.{field}": getattr(value, field)
        for name, value in measurements.levels.items()
        for field in _LEVEL_FIELDS
    }
    return columns


def known_columns() -> tuple[str, ...]:
    """Every column a gate file may name; `<concept id>` stands for any neighbour's opaque id."""
    rates = [f"{_ANY_NEIGHBOUR}.{metric}" for metric in OF_EACH_NEIGHBOUR]
    drops = [*rates, *(f"neighbours.worst.{metric}" for metric in OF_EACH_NEIGHBOUR)]
    levels = [f"{prefix}.{metric}" for prefix in (_ANY_NEIGHBOUR, "neighbours.worst") for metric in LEVELS]
    for group, (prefix, _) in PREFIX.items():
        names = [
            f"{prefix}.{metric}" for question in (*RANKED, *HITS) for metric in metrics_of(group, question)
        ]
        rates += names
        drops += names if prefix in WITH_DROP else []
        levels += [f"{prefix}.{metric}" for metric in LEVELS]
    return (
        *(f"{name}.{state}.{field}" for name in rates for state in STATES for field in _RATE_FIELDS),
        *(f"{name}.drop.{field}" for name in drops for field in _DROP_FIELDS),
        *(f"{name}.loss.{field}" for name in levels for field in _LEVEL_FIELDS),
    )


def is_known(column: str) -> bool:
    """Whether a run can ever yield that column."""
    return _ONE_NEIGHBOUR.sub("<concept id>", column) in known_columns()
