"""Taking a request in: names become ids, the forget set is pinned, the ledger gets a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from contracts.errors import InputError, SetError, StoreUnreachable
from contracts.values import Axis
from intake.workspace import Workspace
from tasks.house import choose, repository, rules
from tasks.plan import read_labels
from tasks.stores import open_ledger

if TYPE_CHECKING:
    from intake.requests import Request

EVENT = "slugline.request.received"


def take_in(
    workspace: Workspace,
    model: str,
    axis: Axis,
    forget_set: str,
    names: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    idempotency_key: str | None = None,
    revision: str | None = None,
) -> Request:
    """Add a request for the named concepts, or for all that the forget set is labelled with.

    Args:
        workspace: whose ledger.
        model: registered model; slugline.yaml must have rules for it.
        axis: object or style.
        forget_set: path of a DVC-tracked set, relative to the repository.
        names: concepts as names or opaque ids; they are turned into ids here and go no further.
        options: overrides: the fields of `tasks.house.Options`.
        idempotency_key: the same request under the same key is added once.
        revision: git revision of the sets; None is HEAD.

    Raises:
        InputError: a name or option is unknown, the path is not tracked at that revision, or the forget
            set holds nothing of a concept.
        SetError: the forget set is malformed, or no item in it is labelled.
    """
    from data.layout import concept_id, read_items, style_id
    from data.pins import PinnedRepo
    from intake.requests import NewRequest

    repo = repository()
    house = rules(repo, model, axis)
    how = choose(house, options or {}).method  # an option that no run could use is refused now
    # A run folder is owned by this process: a run that sweeps up after dead ones leaves it alone.
    with workspace.run_folder("intake") as scratch, PinnedRepo(repo, revision) as pinned:
        labels_folder, set_folder = scratch / "labels", scratch / "forget"
        pinned.fetch_path(house.labels, labels_folder)
        pinned.fetch_set(pinned.pin_set(forget_set), set_folder)
        labels = read_labels(labels_folder)
        present = {label for label in read_items(set_folder)[axis] if label}
        commit = pinned.revision
    if not present:
        raise SetError(f"the forget set {forget_set} holds no item with a label on axis {axis!r}")
    known = set(labels.loc[(labels["axis"] == axis) & labels["seen"], "id"])
    if "method" in (options or {}):
        from unlearning import methods  # seconds: where the method is the house's, the house has tried it

        methods.check(how, len(known), house.family)
    make_id = concept_id if axis == "object" else style_id
    targets = {n if n in known else make_id(n): n for n in names} or {label: label for label in present}
    for target, name in targets.items():
        if target not in known:
            raise InputError(f"{model} knows no {axis} {name!r}")
        if target not in present:
            raise InputError(f"the forget set {forget_set} holds nothing of {axis} {name!r}")
    request = NewRequest(model, axis, tuple(targets), forget_set, commit, options or {})
    return open_ledger(workspace).add(request, idempotency_key)


def announce(request_id: str) -> None:
    """Send the event that a deployment of `unlearn` starts on; a hint, the ledger is what counts.

    Raises:
        StoreUnreachable: no Prefect server is named, or it does not take the event.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource
    from prefect.settings import PREFECT_API_URL

    stands = f"request {request_id} is in the ledger, but was not announced"
    if not PREFECT_API_URL.value():
        raise StoreUnreachable(f"{stands}: PREFECT_API_URL names no server")
    event = Event(
        event=EVENT,
        resource=Resource.model_validate({"prefect.resource.id": f"slugline.request.{request_id}"}),
        payload={"request_id": request_id},
    )
    try:
        # Not `emit_event`: it hands the event to a thread and never says that it was lost.
        with get_client(sync_client=True) as client:
            client.request("POST", "/events", json=[event.model_dump(mode="json")])
    except httpx.HTTPError as error:
        raise StoreUnreachable(
            f"{stands}: the Prefect API does not take events ({type(error).__name__})"
        ) from None
