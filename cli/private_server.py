"""Prefect's API for one process: in memory, on a loopback port of its own, gone when its owner is.

Prefect's own temporary server migrates a database file through some 110 revisions; killed meanwhile it
leaves a file on which no later server starts, and it outlives an owner that was killed.  This one keeps
nothing on disk (ledger, registry and reports are the record of a run) and ends when its standard input
does, which the kernel closes however the owner died.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from contracts.errors import StoreUnreachable

START_TIMEOUT_S = 180.0
NAMED_TIMEOUT_S = 5.0
# Prefect spells an in-memory database exactly so: a pool of one connection that never closes.
_SETTINGS = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///file::memory:?cache=shared&uri=true",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # it would write a file
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}


class PrefectApi:
    """The API that this process's flows report to."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self._timeout_s = timeout_s

    def wait(self) -> None:
        """Return when the API answers.

        Raises:
            StoreUnreachable: it does not, or answers with an error.
        """
        import httpx

        try:
            # A starting server has its port already: the request waits in the socket's queue.
            httpx.get(f"{self.url}/health", timeout=self._timeout_s).raise_for_status()
        except httpx.HTTPError as error:
            raise StoreUnreachable(
                f"the Prefect API at {httpx.URL(self.url).copy_with(userinfo=b'')} does not answer"
                f" ({type(error).__name__})"
            ) from None


@contextmanager
def prefect_api() -> Iterator[PrefectApi]:
    """The API that Prefect's settings name, else a private server that lives as long as the block.

    The block begins before the server is up, so that other slow work can go on meanwhile; call `wait`
    before the first flow.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    named = PREFECT_API_URL.value()
    if named:
        yield PrefectApi(named.rstrip("/"), NAMED_TIMEOUT_S)
        return
    # Heartbeats tell a lasting server of dead runs; here they cost a second at the end of every flow.
    with (
        _server() as url,
        temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield PrefectApi(url, START_TIMEOUT_S)


@contextmanager
def _server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            env={**os.environ, **_SETTINGS},
            start_new_session=True,  # Ctrl-C is for us; our last words still need a server
        )
    # Only the server has the socket now: if it dies, clients hear so instead of waiting.
    try:
        yield f"http://127.0.0.1:{port}/api"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def _serve(listening: socket.socket) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="critical")).run(sockets=[listening])


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_owner, daemon=True).start()
    _serve(socket.socket(fileno=int(sys.argv[1])))
