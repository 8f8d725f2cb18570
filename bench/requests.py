"""Requests drawn by seed, never picked, and what each of them is treated with."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from contracts.canonical import digest
from contracts.values import Axis, Method, Plan, SetRef
from tasks.house import Rules

if TYPE_CHECKING:
    import pandas as pd

POOL = "data/sets/pool"
SETS = ("retain", "search", "holdout", "control", "cross")

Kind = Literal["single", "family", "style"]
KINDS: tuple[Kind, ...] = get_args(Kind)
AXIS_OF: Mapping[Kind, Axis] = {"single": "object", "family": "object", "style": "style"}
# A smaller family is nearly a single concept; in a larger one the gates' bounds are about other things.
FAMILY_SIZES = range(3, 16)


@dataclass(frozen=True)
class Request:
    """One request to forget: its targets are opaque ids, sorted."""

    kind: Kind
    targets: tuple[str, ...]

    @property
    def axis(self) -> Axis:
        """The axis that the targets are labels of."""
        return AXIS_OF[self.kind]

    @property
    def name(self) -> str:
        """A name for rows and folders that tells no concept."""
        own = self.targets[0] if len(self.targets) == 1 else digest(self.targets)[:8]
        return f"{self.kind}-{own}"


def draw(
    labels: "pd.DataFrame",
    usable: Mapping[Axis, frozenset[str]],
    counts: Mapping[Kind, int],
    seed: int,
    sizes: Container[int] = FAMILY_SIZES,
) -> tuple[Request, ...]:
    """Distinct requests of every kind, as many as asked or as there are.

    Each kind is drawn by itself and a smaller count gives the first of a larger one, so that a run can
    be extended without losing what was measured.  The kinds alternate, so that one that ends early has
    seen some of each.

    Args:
        labels: columns id, axis, family.
        usable: the ids that can be requested, by axis (`usable`).
        counts: how many of each kind.
        seed: of the draw.
        sizes: of the families that are drawn, those with another number of concepts are left out.
    """
    places: list[tuple[float, Request]] = []
    for kind, count in counts.items():
        pool = [Request(kind, targets) for targets in sorted(_pool(labels, usable[AXIS_OF[kind]], kind))]
        order = np.random.default_rng([seed, KINDS.index(kind)]).permutation(len(pool))[:count]
        places += [((place + 0.5) / len(order), pool[i]) for place, i in enumerate(order)]
    requests = [request for _, request in sorted(places, key=lambda each: each[0])]
    return tuple(own for own in requests if own.kind != "family" or len(own.targets) in sizes)


def _pool(labels: "pd.DataFrame", usable: frozenset[str], kind: Kind) -> list[tuple[str, ...]]:
    if kind != "family":
        return [(label,) for label in usable]
    own = labels[labels["id"].isin(usable)].sort_values("id")
    families = [tuple(ids) for _, ids in own.groupby("family")["id"]]
    return [ids for ids in families if len(ids) in FAMILY_SIZES]


def usable(folder: Path, axis: Axis) -> frozenset[str]:
    """Labels that the reference models were trained on and that forget, search and holdout set show."""
    from data.layout import read_items
    from tasks.families.clip_inputs import read_classes

    known = read_classes(folder, axis).known
    return known.intersection(*(read_items(folder / role)[axis] for role in ("forget", "search", "holdout")))


@contextmanager
def linked_sets(repo: Path, house: Rules, forget: str = POOL) -> Iterator[Path]:
    """A folder laid out like a run's, one sub-folder per set role; forget sets are drawn from `forget`."""
    paths = {
        **{role: getattr(house, role) for role in SETS if getattr(house, role)},
        "forget": forget,
        "labels": house.labels,
    }
    with TemporaryDirectory() as scratch:
        for role, path in paths.items():
            (Path(scratch) / role).symlink_to((repo / path).resolve())
        yield Path(scratch)


def plan_for(
    repo: Path, house: Rules, axis: Axis, targets: tuple[str, ...], method: Method, threads: int
) -> Plan:
    """The plan of a request that is neither pinned nor registered: what decides its numbers is right."""
    return Plan(
        request_id="bench",
        model="bench",
        base_version="1",
        base_weights_sha256="",
        axis=axis,
        targets=targets,
        neighbours=_neighbours(repo, house, axis, targets),
        # Only that there is a set of the other axis matters here; nothing is pinned.
        sets=(SetRef("cross", house.cross, "", "", "", 0, False),) if house.cross else (),
        labels_sha256="",
        method=method,
        gates_sha256="",
        seed=0,
        threads=threads,
        device="cpu",
        software={},
    )


def _neighbours(repo: Path, house: Rules, axis: Axis, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Nearest known labels that are no targets and that the holdout shows, as `tasks.plan` chooses them."""
    import pandas as pd

    from data.layout import read_items

    if house.neighbours is None:
        return ()
    labels = pd.read_parquet(repo / house.labels / "labels.parquet")
    known = set(labels.loc[labels["seen"] & (labels["axis"] == axis), "id"])
    shown = known & set(read_items(repo / house.holdout)[axis])
    table = pd.read_parquet(repo / house.neighbours)
    near = table[table["concept"].isin(targets)].sort_values(["rank", "concept", "neighbour"])["neighbour"]
    usable = [n for n in dict.fromkeys(near) if n in shown and n not in targets]
    return tuple(usable[: house.nearest])
