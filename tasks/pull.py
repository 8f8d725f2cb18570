"""Pull the base model: champion, or the version that an interrupted attempt was bound to."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import ModelHandle
from tasks.run import Run
from tasks.stores import open_registry

CHAMPION = "champion"


@task(name="pull", cache_policy=NO_CACHE)
def pull(run: Run) -> ModelHandle:
    """The base version in the run folder, every byte checked against manifest and tags.

    Raises:
        InputError: unknown model, or no champion yet.
        DigestMismatch: the stored bytes are not the registered ones.
        StoreUnreachable: the registry does not answer.
    """
    wanted = CHAMPION if run.plan is None else run.plan.base_version
    return open_registry(run.workspace).pull(run.model, wanted, run.path("base"))
