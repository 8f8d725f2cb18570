"""Which rows are asked for, and measuring those that are missing."""

from argparse import ArgumentTypeError
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from bench.audits import AUDITS
from bench.case import Case, Settings, takes_known_retain
from bench.contenders import RETRAINED, Contender, Stop, contenders, fitting
from bench.gold import Gold, find
from bench.provenance import commit
from bench.requests import FAMILY_SIZES, KINDS, Kind, Request, draw, linked_sets, usable
from bench.rows import Row, Rows, row_key
from bench.trial import trial
from contracts.canonical import file_sha256
from contracts.errors import DigestMismatch, InputError
from contracts.values import Axis, Method
from tasks.house import Rules, choose
from tasks.plan import read_labels
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.families.config import WEIGHTS

# Audit -> (on the first so many requests of each kind, None for all; its settings).
Audits = Mapping[str, tuple[int | None, dict[str, Any]]]


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked for, beside its requests.

    Attributes:
        models: folder by name.
        table: contenders by label.
        picked: labels of the contenders; none means all.
        headlines: the same for models of other training seeds.
        seeds: names of those models.
        stop: of every request about objects.
        audits: which, how often, and how.
        settings: of the audits.
        retrained: folder with models that never saw the forget set (`bench.gold`).
        threads: of torch.
        retain_known: see `bench.case.Case`.
    """

    models: Mapping[str, Path]
    table: Mapping[str, Method]
    picked: tuple[str, ...]
    headlines: tuple[str, ...]
    seeds: tuple[str, ...]
    stop: Stop
    audits: Audits
    settings: Settings
    retrained: Path | None
    threads: int
    retain_known: bool = False


@dataclass(frozen=True, eq=False)
class World:
    """The repository, the rules of either axis, and a folder of sets for it (`requests.linked_sets`)."""

    repo: Path
    houses: Mapping[Axis, Rules]
    folders: Mapping[Axis, Path]


@contextmanager
def drawn(
    repo: Path,
    houses: Mapping[Axis, Rules],
    counts: Mapping[Kind, int],
    seed: int,
    sizes: Container[int] = FAMILY_SIZES,
) -> Iterator[tuple[World, tuple[Request, ...]]]:
    """The sets of every axis, linked while inside, and the requests that a seed draws (`requests.draw`)."""
    with ExitStack() as stack:
        folders = {axis: stack.enter_context(linked_sets(repo, house)) for axis, house in houses.items()}
        labels = read_labels(repo / houses["object"].labels)
        known = {axis: usable(folder, axis) for axis, folder in folders.items()}
        yield World(repo, houses, folders), draw(labels, known, counts, seed, sizes)


@dataclass(frozen=True, eq=False)
class Work:
    """One row that is asked for.

    Attributes:
        key: see `bench.rows.row_key`.
        model: name of the base model.
        weights: its sha256.
        request: what is to be forgotten.
        contender: by whom.
        audits: the settings of every audit it should have, by name.
        gold: the model that never saw the forget set.
    """

    key: str
    model: str
    weights: str
    request: Request
    contender: Contender
    audits: Mapping[str, Any]
    gold: Gold | None


def parse_part(text: str) -> tuple[int, int]:
    """`2/3` as (2, 3)."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {text!r}")
    return int(i), int(n)


def parse_sizes(text: str) -> range:
    """`9-15` as 9, 10, ..., 15."""
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
        raise ArgumentTypeError(f"expected I-N with I <= N, got {text!r}")
    return range(int(low), int(high) + 1)


def parse_audits(text: str, settings: Settings) -> Audits:
    """`probe,relearn:4` or `none` as audits.

    Raises:
        InputError: an audit is unknown, or what follows the colon is no number.
    """
    found: dict[str, tuple[int | None, dict[str, Any]]] = {}
    for part in text.split(",") if text != "none" else ():
        name, _, first = part.strip().partition(":")
        if name not in AUDITS or (first and not first.isdecimal()):
            known = ", ".join(AUDITS)
            raise InputError(f"unknown audit {part!r}; there are {known}, each with :N or without")
        found[name] = (int(first) if first else None, asdict(settings) if name == "relearn" else {})
    return found


def worklist(asked: Asked, requests: Sequence[Request], houses: Mapping[Axis, Rules]) -> list[Work]:
    """Every row that is asked for, in the order of measuring: models, then requests, then contenders.

    Raises:
        InputError: a label of a contender is unknown, or its method refuses what it is told.
        OSError: a model's weights cannot be read.
    """
    own = {axis: choose(house, {}).method for axis, house in houses.items()}
    stops: dict[Axis, Stop] = {"object": asked.stop, "style": Stop(own["style"].forget_at)}
    works: list[Work] = []
    for name, folder in asked.models.items():
        weights = file_sha256(folder / WEIGHTS)
        seen = dict.fromkeys(KINDS, 0)
        for request in requests:
            place, seen[request.kind] = seen[request.kind], seen[request.kind] + 1
            audits = {
                audit: told for audit, (first, told) in asked.audits.items() if first is None or place < first
            }
            gold = None if asked.retrained is None else find(asked.retrained, name, request)
            if gold is not None:
                sha256 = file_sha256(gold.folder / WEIGHTS)
                key = row_key(weights, request.targets, sha256)
                works.append(Work(key, name, weights, request, Contender(RETRAINED, None), audits, gold))
                audits = {**audits, "distance": {"retrained": sha256}}
            picked = asked.headlines if name in asked.seeds else asked.picked
            known = fitting(asked.table, own[request.axis])
            for contender in contenders(known, picked, request.axis, stops):
                known_retain = asked.retain_known and takes_known_retain(contender.method)
                key = row_key(weights, request.targets, contender.sha256, known_retain)
                works.append(Work(key, name, weights, request, contender, audits, gold))
    return works


def measure(
    asked: Asked,
    world: World,
    works: Sequence[Work],
    out: Path,
    part: tuple[int, int] = (1, 1),
    limit_seconds: float | None = None,
) -> list[Row]:
    """Measure what is missing, request by request, until it is done or the time is up; the rows there are.

    Args:
        asked: models, settings, threads.
        world: where the sets are.
        works: the rows that are asked for.
        out: folder of rows.jsonl; new rows are appended.
        part: (i, n), counted from 1: every n-th request from the i-th on.
        limit_seconds: no row is begun after that.

    Raises:
        DigestMismatch: a model's weights were replaced after the rows were asked for.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = Rows(out / "rows.jsonl")
    _measure(asked, world, works, rows, part, limit_seconds)
    # One row serves two contenders that differ by what they are called alone; each has it by its own name.
    return [{**row, "label": work.contender.label} for work in works for row in rows.of([work.key])]


def _measure(
    asked: Asked,
    world: World,
    works: Sequence[Work],
    rows: Rows,
    part: tuple[int, int],
    limit_seconds: float | None,
) -> None:
    began, here = monotonic(), commit(world.repo)
    own = _by_request(works)[part[0] - 1 :: part[1]]
    loaded: tuple[str, ClipModel, ClipModel] | None = None
    with tqdm(total=sum(len(group) for group in own), unit="row", smoothing=0) as bar:
        for group in own:
            missing = [work for work in group if not rows.holds(work.key, work.audits)]
            bar.update(len(group) - len(missing))
            case = None
            for work in missing:
                if rows.holds(work.key, work.audits):  # by now: the same method under another label
                    bar.update()
                    continue
                if limit_seconds is not None and monotonic() - began > limit_seconds:
                    return
                if loaded is None or loaded[0] != work.model:
                    loaded = (work.model, *_load(asked.models[work.model], work.weights))
                case = case or _case(asked, world, group, loaded[1])
                bar.set_postfix_str(f"{work.request.name} {work.contender.label}")
                row = trial(case, work.contender, loaded[2], work.audits)
                rows.append({"key": work.key, "commit": here, **row})
                bar.update()


def _by_request(works: Sequence[Work]) -> list[list[Work]]:
    groups: dict[tuple[str, Request], list[Work]] = {}
    for work in works:
        groups.setdefault((work.model, work.request), []).append(work)
    return list(groups.values())


def _load(folder: Path, weights: str) -> tuple[ClipModel, ClipModel]:
    """The base model and a copy to work on."""
    base, copy = ClipModel.load(folder), ClipModel.load(folder)
    if file_sha256(folder / WEIGHTS) != weights:
        raise DigestMismatch(f"the weights in {folder} were replaced since this run began; run it again")
    return base, copy


def _case(asked: Asked, world: World, group: Sequence[Work], base: ClipModel) -> Case:
    work = group[-1]  # the last one is a method, never the retrained model
    axis = work.request.axis
    with deterministic(0, asked.threads):
        return Case.build(
            world.repo,
            world.folders[axis],
            world.houses[axis],
            (work.model, base),
            work.request,
            work.contender,
            work.gold,
            asked.settings,
            asked.threads,
            asked.retain_known,
        )
