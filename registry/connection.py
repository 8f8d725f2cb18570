"""Reaching an MLflow store: its address, its manners (no telemetry, no pickle), its failures."""

import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from contracts.errors import InputError, StoreUnreachable

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_TIMEOUT_S = 4.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Never weaker than this, whatever the user's environment says.
_FORCED = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow accepts the word only, not 1
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # On a server MLflow prints a link per finished run, with the password of the URI in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# MLflow's own defaults are 7 retries with growing pauses, minutes for a server that died.
_DEFAULTS = {
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}


def tame_mlflow() -> None:
    """Set MLflow's switches; must run before its first import, which reads some of them once."""
    os.environ.update(_FORCED)
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def public_uri(uri: str) -> str:
    """The URI without user, password and query."""
    # Not urlunsplit: it drops two of the four slashes of an absolute SQLite path.
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}".partition("?")[0]


def connect(uri: str) -> "MlflowClient":
    """A client of the tracking server or database at `uri`, known to answer.

    Raises:
        InputError: the URI is neither http(s) nor a database MLflow supports.
        StoreUnreachable: nobody listens there; the message shows the URI without credentials.
    """
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme != "sqlite" and scheme not in _PORTS:
        raise InputError(f"tracking URI {public_uri(uri)!r} is neither http(s):// nor a database URL")
    _probe(uri)
    with store_errors(uri):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_registered_models(max_results=1)
        return client


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn MLflow's failures into one sentence; their own texts hold URLs with passwords.

    Raises:
        StoreUnreachable: the store answered with an error or not at all.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise StoreUnreachable(f"the registry {public_uri(uri)} failed: {error.error_code}") from None
    except OSError as error:
        raise StoreUnreachable(f"the registry {public_uri(uri)} failed: {type(error).__name__}") from None


def is_missing(error: Exception) -> bool:
    """Whether MLflow says that the thing asked for does not exist."""
    return getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"


def _probe(uri: str) -> None:
    # MLflow would retry a dead database for 100 s and a black-holed server for minutes.
    parts = urlsplit(uri)
    if not parts.hostname or _behind_proxy(parts):
        return
    try:
        port = parts.port or _PORTS[parts.scheme.partition("+")[0]]
        socket.create_connection((parts.hostname, port), timeout=PROBE_TIMEOUT_S).close()
    except (OSError, ValueError):
        raise StoreUnreachable(f"the registry {public_uri(uri)} does not answer") from None


def _behind_proxy(parts: SplitResult) -> bool:
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        parts.hostname or ""
    )
