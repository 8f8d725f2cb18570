"""Prefect's API for one process: in memory, on a loopback port of its own, gone when its owner is.

Prefect's own temporary server outlives an owner that was killed, migrates a database file on disk through
some 110 revisions, and makes its owner import all of the server, 2 s.  This one ends when its standard
input does, which the kernel closes however the owner died, and keeps nothing on disk but an empty database
to begin with next time: the record of a run is the ledger, the registry and the report.
"""

import asyncio
import atexit
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from contracts.errors import StoreUnreachable
from contracts.whole_files import written_whole
from intake.workspace import Workspace

START_TIMEOUT_S = 180.0
NAMED_TIMEOUT_S = 5.0
# At this very name Prefect keeps a pool of one connection that never closes.
_MEMORY = "file::memory:?cache=shared"
_SETTINGS = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_MEMORY}&uri=true",
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",  # done before, see `_fill`
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
    """The API that Prefect's settings name, else a private server that lives as long as the process.

    The block begins before the server is up, so that other slow work can go on meanwhile; call `wait`
    before the first flow.
    """
    Workspace.open()  # Prefect makes its home inside, but not the folders above
    from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    named = PREFECT_API_URL.value()
    if named:
        yield PrefectApi(named.rstrip("/"), NAMED_TIMEOUT_S)
        return
    url = _start()
    # Heartbeats tell a lasting server of dead runs; here they cost a second at the end of every flow.
    with temporary_settings({PREFECT_API_URL: url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield PrefectApi(url, START_TIMEOUT_S)


def _start() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listening.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # ours is for results
            pass_fds=[listening.fileno()],
            env={**os.environ, **_SETTINGS},
            start_new_session=True,  # Ctrl-C is for us; our last words still need a server
        )

    def stop() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()

    # Exit handlers run in reverse order: Prefect's threads, started later, send their last events first.
    atexit.register(stop)
    # Only the server has the socket now: if it dies, clients hear so instead of waiting.
    return f"http://127.0.0.1:{port}/api"


def _serve(listening: socket.socket) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    # A shared in-memory database lives as long as its last connection: this one.
    with closing(sqlite3.connect(_MEMORY, uri=True)) as memory:
        _fill(memory)
        app = create_app(ephemeral=True, final=True)
        uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="critical")).run(sockets=[listening])


def _fill(memory: sqlite3.Connection) -> None:
    """Copy the empty database of an earlier server, or migrate one (5 s) and leave a copy."""
    from prefect import __version__
    from prefect.server.database import provide_database_interface
    from prefect.settings import PREFECT_HOME

    empty = PREFECT_HOME.value() / f"empty-{__version__}.db"
    if empty.exists():
        with closing(sqlite3.connect(empty)) as file:
            file.backup(memory)
        return
    asyncio.run(provide_database_interface().create_db())
    with written_whole(empty) as partial, closing(sqlite3.connect(partial)) as file:
        memory.backup(file)


def _end_with_owner() -> None:
    os.read(sys.stdin.fileno(), 1)  # nobody writes: it returns when the owner is gone
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_owner, daemon=True).start()
    _serve(socket.socket(fileno=int(sys.argv[1])))
