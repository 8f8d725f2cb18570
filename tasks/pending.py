"""Which requests of a model wait to be run, the most urgent first."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from intake.workspace import Workspace
from tasks.stores import open_ledger


@task(name="pending", cache_policy=NO_CACHE)
def pending(model: str) -> tuple[str, ...]:
    """Ids by deadline: received, ended in an error, or left running by a process that died."""
    found = open_ledger(Workspace.open()).list(model, ("received", "error", "running"))
    return tuple(request.id for request in found)
