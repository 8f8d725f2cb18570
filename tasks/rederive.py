"""Re-derivation: a later request's edit begins where nothing was erased, and erases everything again.

Edits upon edits drift away from the weights that were trained, and utility goes with them (arXiv
2511.07970).  So by default a request whose base version carries erasures is not edited on from there.  The
imported version is edited once, for the union of what is to be forgotten and what was; the verdict still
compares the new version with the one it replaces, and holds earlier erasures to the bounds that they passed.
That takes the forget sets of the earlier requests.  Where those are gone, as they may have to be,
`edit_from: champion` goes on from the present version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.canonical import digest, from_plain
from contracts.errors import DigestMismatch, InputError, SluglineError
from contracts.values import ModelHandle, Plan, Rederivation, Role
from tasks.house import Choice, repository
from tasks.log import say
from tasks.run import Run
from tasks.stores import open_registry

if TYPE_CHECKING:
    from intake.requests import Request

FOLDER = "rederive"  # the run folder as the edit sees it
ORIGINAL = "original"


@dataclass(frozen=True)
class Beginning:
    """Run, plan and model as profile and edit see them; the plan's targets are all that the edit removes."""

    run: Run
    plan: Plan
    base: ModelHandle


def rederivation(
    run: Run, base: ModelHandle, choice: Choice, earlier: Sequence[Request]
) -> Rederivation | None:
    """Where the edit begins; None: at the base version.

    One edit has one axis and one method: where an earlier request had another, the edit goes on from the
    base version, too, and the log says so.

    Raises:
        InputError: the request itself asks for what one edit cannot do.
        ModelError: the base version descends from no imported one.
    """
    from registry.soundness import origin_of

    if not earlier or choice.edit_from == "champion":
        return None
    plans = [from_plain(Plan, request.plan) for request in earlier]
    # How many items are computed at a time decides no more than rounding.
    kinds = {(plan.axis, digest(replace(plan.method, micro_batch=1))) for plan in plans}
    if kinds != {(run.axis, digest(replace(choice.method, micro_batch=1)))}:
        said = f"{run.request_id}: an earlier request had another axis or method"
        if run.options.get("edit_from") == "original":
            raise InputError(f"{said}: one edit of the original cannot do both")
        say(f"{said}, so the champion is edited on")
        return None
    registry = open_registry(run.workspace)
    origin = origin_of(registry, registry.describe(base.name, base.version))
    return Rederivation(
        version=origin.version,
        weights_sha256=origin.tags["weights_sha256"],
        sets=tuple(plan.set("forget") for plan in plans),
    )


@contextmanager
def without_them(run: Run) -> Iterator[None]:
    """Errors inside also say how to go on without what earlier requests were about.

    Raises:
        SluglineError: of the same class, with the advice.
    """
    try:
        yield
    except SluglineError as error:
        raise type(error)(
            f"{error}. This came up where {run.request_id} was to do earlier erasures again: "
            "with the option edit_from=champion the present champion is edited on instead"
        ) from None


def lay_out(run: Run, found: Rederivation, roles: Mapping[Role, Path]) -> Path:
    """Fetch the earlier forget sets, and make a folder in which all of them and the run's own are one set.

    Args:
        run: whose own sets are there already.
        found: names the sets.
        roles: where the run's sets are.

    Returns:
        The joined forget set, in a folder that holds all of the run's other sets.

    Raises:
        SluglineError: a set cannot be had any more, or contradicts another.
    """
    from data.joining import join_sets
    from data.pins import fetch_set

    folder = run.path(FOLDER)
    folder.mkdir()
    for path in (*roles.values(), run.path("labels")):
        if path != roles["forget"]:
            (folder / path.name).symlink_to(path)
    parts = [
        fetch_set(repository(), ref, run.path(f"forget-{number}")) for number, ref in enumerate(found.sets)
    ]
    join_sets([roles["forget"], *parts], folder / "forget")
    return folder / "forget"


def shown_to_edit(run: Run, plan: Plan) -> Path:
    """The folder of the sets that the edit sees: the run's own, or where the forget sets are joined."""
    return Path(run.folder) if plan.rederived is None else run.path(FOLDER)


@task(name="begin", cache_policy=NO_CACHE)
def begin(run: Run, plan: Plan, base: ModelHandle) -> Beginning:
    """What profile and edit are to work on.

    Raises:
        DigestMismatch: the original's weights are not the planned ones.
        StoreUnreachable: the registry does not answer.
    """
    if plan.rederived is None:
        return Beginning(run, plan, base)
    start = open_registry(run.workspace).pull(plan.model, plan.rederived.version, run.path(ORIGINAL))
    if start.weights_sha256 != plan.rederived.weights_sha256:
        raise DigestMismatch(
            f"version {start.version} of {start.name} has weights {start.weights_sha256}, "
            f"planned were {plan.rederived.weights_sha256}"
        )
    whole = replace(
        plan,
        base_version=start.version,
        base_weights_sha256=start.weights_sha256,
        targets=plan.removed,
        erased_before=(),
        earlier=(),
        promised={},
        rederived=None,
    )
    return Beginning(replace(run, folder=str(shown_to_edit(run, plan))), whole, start)
