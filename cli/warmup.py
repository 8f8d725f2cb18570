"""Hide cold starts behind each other: Prefect's server and the slow imports come up side by side."""

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SLOW_IMPORTS = ("open_clip", "great_expectations", "matplotlib.figure")


@contextmanager
def warm_up() -> Iterator[None]:
    """Start Prefect's own server and import slow packages in the background; wait for both at the end."""
    threads = [threading.Thread(target=work, daemon=True) for work in (_prefect_server, _imports)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join()


def _prefect_server() -> None:
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        SubprocessASGIServer().start()


def _imports() -> None:
    for name in SLOW_IMPORTS:
        importlib.import_module(name)
