"""Plan a run: pin every set, check them, and write down everything that can decide the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.canonical import digest, file_sha256, from_plain
from contracts.errors import InputError, SetError
from contracts.values import ModelHandle, Plan, Role, SetRef, Verdict, promises
from tasks.house import RULES_FILE, Rules, choose, repository, rules
from tasks.machine import device, processes, threads
from tasks.rederive import lay_out, rederivation, without_them
from tasks.run import Run
from tasks.stores import open_ledger, open_registry

if TYPE_CHECKING:
    import pandas as pd

    from data.pins import PinnedRepo
    from intake.requests import Request

SOFTWARE = ("slugline", "torch", "open_clip_torch", "diffusers", "transformers", "numpy")
GATES_FILE = "gates.yaml"
LABELS_FILE = "labels.parquet"


@task(name="plan", cache_policy=NO_CACHE)
def make_plan(run: Run, base: ModelHandle) -> Plan:
    """Fetch and validate the sets, and return the plan; an earlier attempt's plan is checked, not remade.

    Raises:
        InputError: a target or path is unknown, an option is wrong, the model is of another family than the
            rules say, or anything that decides is not what the earlier attempt was bound to.
        SetError: a set is empty, malformed, or overlaps another.
        StoreUnreachable: the DVC remote does not have the bytes.
    """
    from data.pins import PinnedRepo
    from data.validate import validate_sets

    repo = repository()
    house = rules(repo, run.model, run.axis)
    choice = choose(house, run.options)
    if base.family != house.family:
        raise InputError(
            f"version {base.version} of {base.name} is of family {base.family}, "
            f"{RULES_FILE} says {house.family}"
        )
    with PinnedRepo(repo, run.revision if run.plan is None else run.plan.sets[0].revision) as pinned:
        paths: dict[Role, str] = {
            "forget": run.forget_set,
            "retain": house.retain,
            "search": house.search,
            "holdout": house.holdout,
            "control": house.control,
        }
        if house.cross:
            paths["cross"] = house.cross
        refs = tuple(_fetch(pinned, role, path, run.path(role)) for role, path in paths.items())
        pinned.fetch_path(house.labels, run.path("labels"))
        if house.neighbours:
            pinned.fetch_path(house.neighbours, run.path("neighbours.parquet"))
    labels = read_labels(run.path("labels"))
    check_targets(run, run.targets, labels)
    earlier = _earlier(run, base)
    folders = {role: run.path(role) for role in paths}
    rederived = rederivation(run, base, choice, earlier)
    if rederived is not None:
        with without_them(run):
            folders["forget"] = lay_out(run, rederived, folders)
            again = [target for request in earlier for target in request.targets]
            check_targets(replace(run, folder=str(folders["forget"].parent)), again, labels)
    validate_sets(folders)
    erased = tuple(sorted({target for request in earlier for target in request.targets}))
    plan = Plan(
        request_id=run.request_id,
        model=base.name,
        base_version=base.version,
        base_weights_sha256=base.weights_sha256,
        axis=run.axis,
        targets=run.targets,
        neighbours=_neighbours(run, house, labels, erased),
        sets=refs,
        labels_sha256=labels_sha256(run.path("labels")),
        method=choice.method,
        gates_sha256=_copy_gates(repo, choice.gates, run.path(GATES_FILE)),
        seed=choice.seed,
        threads=threads(),
        device=device(),
        software={name: version(name) for name in SOFTWARE},
        erased_before=erased,
        earlier=tuple(request.id for request in earlier),
        promised=_promised(earlier),
        rederived=rederived,
        processes=processes(choice.method),
    )
    if run.plan is not None and run.plan != plan:
        changed = [k for k in plan.__dataclass_fields__ if getattr(plan, k) != getattr(run.plan, k)]
        raise InputError(
            f"request {run.request_id} was begun under another plan ({', '.join(changed)} changed since); "
            "cancel it and add it again"
        )
    return plan


def read_labels(folder: Path) -> pd.DataFrame:
    """The vocabulary: columns id, axis, name, family, seen.

    Raises:
        SetError: the file or a column is missing, or ids are not unique.
    """
    import pandas as pd

    try:
        labels = pd.read_parquet(folder / LABELS_FILE)
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        raise SetError(f"labels: {LABELS_FILE} is missing or is no parquet file") from None
    missing = {"id", "axis", "name", "family", "seen"} - set(labels.columns)
    if missing or labels["id"].duplicated().any():
        raise SetError(
            f"labels: {'column ' + min(missing) + ' is missing' if missing else 'ids are not unique'}"
        )
    return labels


def _fetch(pinned: PinnedRepo, role: Role, path: str, destination: Path) -> SetRef:
    ref = pinned.pin_set(path)
    needed = "holdout" if role == "cross" else role
    if ref.role != needed:
        raise SetError(f"{path} is a {ref.role} set, a {needed} set is needed")
    pinned.fetch_set(ref, destination)
    return replace(ref, role=role)


def check_targets(run: Run, targets: Sequence[str], labels: pd.DataFrame) -> None:
    """Refuse targets that the labels do not know, or that a set of the run does not show.

    Raises:
        InputError: a target is no concept that the model knows.
        SetError: the forget, search or holdout set holds nothing of it.
    """
    from data.layout import read_items

    known = set(labels.loc[(labels["axis"] == run.axis) & labels["seen"], "id"])
    unknown = [t for t in targets if t not in known]
    if unknown:
        raise InputError(f"target {unknown[0]} is not a concept that {run.model} knows on axis {run.axis}")
    for role in ("forget", "search", "holdout"):
        present = set(read_items(run.path(role))[run.axis])
        absent = [t for t in targets if t not in present]
        if absent:
            raise SetError(f"the {role} set holds no item of target {absent[0]}")


def _earlier(run: Run, base: ModelHandle) -> tuple[Request, ...]:
    """The requests whose erasure the base version carries, by id.

    Raises:
        InputError: a target is among what they erased.
    """
    from registry.soundness import erased_by

    registry, ledger = open_registry(run.workspace), open_ledger(run.workspace)
    found = erased_by(registry, registry.describe(base.name, base.version))
    requests = tuple(map(ledger.get, sorted(found)))
    for request in requests:
        again = sorted(set(request.targets) & set(run.targets))
        if again and request.axis == run.axis:
            raise InputError(
                f"target {again[0]} was erased from version {base.version} of {base.name} already"
            )
    return requests


def _promised(earlier: Sequence[Request]) -> dict[str, float]:
    """Of every figure that erasure gates of these requests bounded, the lowest bound."""
    bounds: dict[str, float] = {}
    for request in earlier:
        for name, maximum in promises(from_plain(Verdict, request.evidence.verdict)).items():
            bounds[name] = min(maximum, bounds.get(name, maximum))
    return bounds


def _neighbours(run: Run, house: Rules, labels: pd.DataFrame, erased: Sequence[str]) -> tuple[str, ...]:
    """Nearest concepts of every target that are neither targets nor erased, nearest first.

    Without a table every other known concept of the targets' families is a neighbour.  One that the
    holdout does not show cannot be measured, and the next nearest stands in for it.
    """
    import pandas as pd

    from data.layout import read_items

    known = labels[(labels["axis"] == run.axis) & labels["seen"]]
    gone = {*run.targets, *erased}
    if house.neighbours:
        table = pd.read_parquet(run.path("neighbours.parquet"))
        table = table[table["concept"].isin(run.targets)].sort_values(["rank", "concept", "neighbour"])
        found = table["neighbour"].tolist()
    else:
        families = set(known.loc[known["id"].isin(run.targets), "family"])
        found = sorted(known.loc[known["family"].isin(families), "id"])
    measurable = set(known["id"]) & set(read_items(run.path("holdout"))[run.axis])
    usable = [n for n in dict.fromkeys(found) if n in measurable and n not in gone]
    return tuple(usable[: house.nearest])


def labels_sha256(folder: Path) -> str:
    """The digest of all files of a labels folder."""
    return digest({p.name: file_sha256(p) for p in sorted(folder.iterdir())})


def _copy_gates(repo: Path, path: str, destination: Path) -> str:
    """Copy the gate file into the run folder after reading it as one; its sha256."""
    from gates.suite import load_suite

    source = (repo / path).resolve()
    if not source.is_relative_to(repo.resolve()):
        raise InputError(f"gate file {path!r} leaves the repository")
    suite = load_suite(source)
    destination.write_bytes(source.read_bytes())
    return suite.sha256
