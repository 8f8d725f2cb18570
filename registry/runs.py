"""The MLflow run behind a version: one per (model, request, plan), filled, found again after a crash."""

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from contracts.errors import InputError, StoreUnreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "slugline"


def open_run(
    client: "MlflowClient", artifact_root: str | None, own: Mapping[str, str], run_tags: Mapping[str, str]
) -> str:
    """The run that a crash left without a version, to be filled again, else a new one.

    Args:
        client: the store.
        artifact_root: where a new experiment keeps its files; None lets the server decide.
        own: the tags that identify the run (model, request, plan).
        run_tags: further tags.

    Returns:
        The run id.
    """
    experiment = _experiment(client, artifact_root)
    query = " and ".join(f"tags.{key} = '{value}'" for key, value in own.items())
    orphans = client.search_runs([experiment], query, max_results=1)
    if orphans:
        return str(orphans[0].info.run_id)
    # MLflow would otherwise invent a name such as "fearless-hen-32" on every run.
    run = client.create_run(experiment, tags={**run_tags, **own}, run_name=own["request_id"])
    return str(run.info.run_id)


def log_metrics(client: "MlflowClient", run_id: str, metrics: Mapping[str, float]) -> None:
    """Log figures at step 0, in one call."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    client.log_batch(run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in metrics.items()])


def log_files(client: "MlflowClient", run_id: str, files: Mapping[str, Path]) -> None:
    """Log local files under the given paths inside the run.

    Raises:
        InputError: one of them does not exist.
    """
    # MLflow keeps local file names; a staging folder of links gives each file the name it shall have.
    with tempfile.TemporaryDirectory() as staging:
        for inside, local in files.items():
            if not local.is_file():
                raise InputError(f"the file to log as {inside!r} does not exist")
            link = Path(staging, inside)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(local.absolute())
        client.log_artifacts(run_id, staging)


def ensure_registered(client: "MlflowClient", name: str) -> None:
    """Create the registered model unless it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _experiment(client: "MlflowClient", artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        # Another process may create it first.
        with contextlib.suppress(MlflowException):
            return str(client.create_experiment(EXPERIMENT, artifact_location=artifact_root))
        found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        raise StoreUnreachable(f"the registry will not create the experiment {EXPERIMENT!r}")
    return str(found.experiment_id)
