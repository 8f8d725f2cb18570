"""The small world for whole processes: attempts at the demo's path, and what they leave behind."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.attempts import Attempt
from tests.world import FORGET, FORGET_TWO, MODEL, World


@pytest.fixture(scope="session")
def attempt_in(world: World, prefect_server: None) -> Iterator[Callable[[Path], Attempt]]:
    """An attempt at the demo's path with that folder as its workspace; one Prefect server for all."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    # Read once, when the first attempt makes the fork server import Prefect.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        patch.setenv("PREFECT_HOME", str(PREFECT_HOME.value()))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("SLUGLINE_LEDGER_URL", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield lambda home: Attempt(home, world.root, world.model, MODEL, (FORGET, FORGET_TWO))
