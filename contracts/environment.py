"""Process environment that must be right before Prefect, MLflow, DVC or Great Expectations is imported.

All telemetry of all packages is off, nothing unpickles, nothing asks a hub, and what Prefect writes down
stays in the workspace.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

QUIET = {
    # MLflow honours DO_NOT_TRACK only as the word "true".
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
DEFAULTS = {
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_TASKS_DEFAULT_NO_CACHE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def prepare(home: Path, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables; what the user set already stays, except for `QUIET`.

    Args:
        home: the workspace; Prefect's own home goes below it.
        environ: the environment to change, by default this process's.
    """
    environ.update(QUIET)
    for name, value in DEFAULTS.items():
        environ.setdefault(name, value)
    environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    # Prefect pickles the exceptions of failed flows wherever results go: into memory, not onto a disk.
    memory = Path("/dev/shm")
    results = memory / f"slugline-{os.getuid()}" if memory.is_dir() else home / "prefect" / "results"
    environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(results))
    environ.setdefault("DVC_SITE_CACHE_DIR", str(home / "dvc-site-cache"))
