"""Flow `sweep`: every pending request of a model, and every erasure so far against the present champion."""

from typing import Any

from prefect import flow

from contracts.canonical import to_plain
from contracts.errors import SluglineError
from flows.unlearn import unlearn
from tasks.aliases import reconcile
from tasks.log import say
from tasks.pending import pending
from tasks.recheck import recheck


@flow(name="sweep", log_prints=False)
def sweep(model: str) -> dict[str, Any]:
    """Finish what was interrupted, run what is pending, re-check what was erased.

    A request that ends in an error, of whatever kind, does not stop the others; it stays pending for the next
    sweep.

    Raises:
        InputError: there is no such model.

    Returns:
        `runs` (results of `unlearn`), `errors` (request id to class of error), `rechecks`.
    """
    reconcile(model)
    runs: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for request_id in pending(model):
        try:
            runs.append(unlearn(request_id))
        except Exception as error:
            # A text that is not ours may tell of the forget set.
            told = f": {error}" if isinstance(error, SluglineError) else ""
            say(f"{request_id}: {type(error).__name__}{told}")
            errors[request_id] = type(error).__name__
    rechecks = recheck(model)
    for standing in rechecks:
        if not standing.still_gone:
            say(f"{standing.request_id}: erased, but version {standing.champion} knows it again")
    return {"runs": runs, "errors": errors, "rechecks": to_plain(rechecks)}
