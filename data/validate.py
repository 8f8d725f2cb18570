"""The sets' manifests as Great Expectations suites: each set by itself, then no overlap.

Great Expectations copies offending values into its results.  So captions never reach it: it sees
opaque ids, digests, and per row booleans computed here; and results are asked for counts only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import DigestMismatch, SetError
from contracts.values import Role
from data.layout import (
    ITEM_ID,
    MEMBER_NAME,
    OBJECT_ID,
    SHA256,
    SHARD_NAME,
    SOURCE_ID,
    STYLE_ID,
    item_digests,
    item_id,
    items_sha256,
    read_items,
    read_summary,
)
from data.pictures import decode_image
from data.shards import ShardReader

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.expectations.expectation import Expectation

# What no two sets may share, worst first.
_SHARED = {"sha256": "images", "id": "items", "source": "base drawings"}

_FORMATS = {
    "id": ITEM_ID,
    "object": OBJECT_ID,
    "style": STYLE_ID,
    "sha256": SHA256,
    "source": SOURCE_ID,
    "member": MEMBER_NAME,
    "shard": SHARD_NAME,
}
_MAY_BE_EMPTY = ("object", "style")

# What is wrong -> the boolean column, made here, that says of each row that it is not.
_FACTS = {
    "have a blank caption": "caption_present",
    "have a negative view": "view_numbered",
    "have an id that does not come from their image, view and caption": "id_derived",
    "have no readable image": "image_readable",
}


@dataclass(frozen=True)
class CheckedSet:
    """One set that passed."""

    role: Role
    n_items: int
    n_drawings: int
    items_sha256: str


@dataclass(frozen=True)
class SetReport:
    """The sets that passed, and how many Great Expectations checks were run on them."""

    sets: tuple[CheckedSet, ...]
    expectations: int


def validate_sets(folders: Mapping[Role, Path]) -> SetReport:
    """Validate the sets of one request, each by itself and against each other.

    Each set: at least one item, ids unique and made from what they name, digests and labels well
    formed, captions present, every image there, with its digest, and decodable.  Across sets: no
    image, item or source (base drawing) stands in two of them.

    Raises:
        SetError: something does not hold: the first problem, and how many more there are.
    """
    problems: list[str] = []
    sets: dict[Role, pd.DataFrame] = {}
    suite = _set_suite()
    for role, folder in folders.items():
        summary, items = read_summary(folder), read_items(folder)
        sets[role] = items
        if summary.role != ("holdout" if role == "cross" else role):
            problems.append(f"{role} set: set.json calls it a {summary.role} set")
        if (summary.n_items, summary.n_drawings) != (len(items), items["source"].nunique()):
            problems.append(f"{role} set: set.json counts other items or drawings than items.parquet holds")
        problems += [f"{role} set: {problem}" for problem in _problems_of_set(folder, items, suite)]
    problems += _problems_between(sets)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise SetError(problems[0] + more)
    checked = tuple(
        CheckedSet(role, len(items), int(items["source"].nunique()), items_sha256(items))
        for role, items in sets.items()
    )
    return SetReport(checked, len(suite) * len(sets) + (len(_SHARED) if len(sets) > 1 else 0))


def _set_suite() -> dict[str, "Expectation"]:
    """What is wrong -> the expectation that finds it."""
    import great_expectations.expectations as gxe

    suite: dict[str, Expectation] = {
        "has no items": gxe.ExpectTableRowCountToBeBetween(min_value=1),
        "have an id that another item has too": gxe.ExpectColumnValuesToBeUnique(column="id"),
    }
    for column, form in _FORMATS.items():
        regex = f"^(?:{form.pattern}){'?' if column in _MAY_BE_EMPTY else ''}$"
        suite[f"have a malformed {column}"] = gxe.ExpectColumnValuesToMatchRegex(column=column, regex=regex)
    for problem, fact in _FACTS.items():
        suite[problem] = gxe.ExpectColumnValuesToBeInSet(column=fact, value_set=[True])
    return suite


def _problems_of_set(
    folder: Path, items: "pd.DataFrame", suite: Mapping[str, "Expectation"]
) -> Iterator[str]:
    frame = items[list(_FORMATS)].assign(
        caption_present=items["caption"].str.strip() != "",
        view_numbered=items["view"] >= 0,
        id_derived=[item_id(digest) for digest in item_digests(items)] == items["id"],
        image_readable=_readable(folder, items),
    )
    for problem, count in _failures(frame, suite):
        if count is None:
            yield problem
        else:
            fact = _FACTS.get(problem)
            example = f", first {_named(frame[~frame[fact]])}" if fact else ""
            yield f"{count} of {len(frame)} rows {problem}{example}"


def _readable(folder: Path, items: "pd.DataFrame") -> list[bool]:
    """Whether each row's image is there, is the promised one, and can be decoded (once per image)."""
    columns = items["shard"], items["member"], items["sha256"]
    known: dict[tuple[str, str, str], bool] = {}
    with ShardReader(folder) as shards:
        for shard, member, sha256, item in zip(*columns, items["id"], strict=True):
            if (shard, member, sha256) in known:
                continue
            try:
                decode_image(shards.read(shard, member, sha256, item), f"item {item}")
                known[shard, member, sha256] = True
            except (SetError, DigestMismatch):
                known[shard, member, sha256] = False
    return [known[image] for image in zip(*columns, strict=True)]


def _problems_between(sets: Mapping[Role, "pd.DataFrame"]) -> Iterator[str]:
    import great_expectations.expectations as gxe
    import pandas as pd

    pairs = list(combinations(sets, 2))
    if not pairs:
        return
    shared = {
        column: [set(sets[one][column]) & set(sets[other][column]) for one, other in pairs]
        for column in _SHARED
    }
    counts = pd.DataFrame({column: [len(common) for common in found] for column, found in shared.items()})
    suite: dict[str, Expectation] = {
        column: gxe.ExpectColumnMaxToBeBetween(column=column, max_value=0) for column in _SHARED
    }
    failed = [column for column, _ in _failures(counts, suite)]
    for position, (one, other) in enumerate(pairs):
        for column in failed:
            if common := shared[column][position]:
                example = sets[one][sets[one][column].isin(common)]
                yield (
                    f"the {one} and {other} sets share {len(common)} {_SHARED[column]}, "
                    f"one is in {_named(example)} of the {one} set"
                )
                break


def _named(rows: "pd.DataFrame") -> str:
    """The first row's id, if it is an opaque id indeed."""
    first = str(rows["id"].iloc[0])
    return f"item {first}" if ITEM_ID.fullmatch(first) else "a row with a malformed id"


def _failures(frame: "pd.DataFrame", suite: Mapping[str, "Expectation"]) -> list[tuple[str, int | None]]:
    """The keys of the expectations that do not hold, in the suite's order, with their counts of rows.

    An expectation without a result, or that could not be evaluated, does not hold.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    # In memory: by default every context leaves a folder for Data Docs in TMPDIR.
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
    )
    context = gx.get_context(mode="ephemeral", project_config=settings)
    asset = context.data_sources.add_pandas("sets").add_dataframe_asset("items")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": frame})
    for key, expectation in suite.items():
        expectation.meta = {"key": key}  # results come in an order of their own
    validation = batch.validate(
        gx.ExpectationSuite(name="sets", expectations=list(suite.values())),
        # No sample of offending values: a malformed id may well be a name.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": 0},
    )
    counts: dict[str, int | None] = dict.fromkeys(suite)
    for result in validation.results:
        configuration = result.expectation_config
        if configuration is None or configuration.meta is None:
            continue
        if result.success:
            del counts[configuration.meta["key"]]
        else:
            counts[configuration.meta["key"]] = result.result.get("unexpected_count")
    return list(counts.items())
