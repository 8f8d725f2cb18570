"""Every test here runs flows: against the session's Prefect server."""

import pytest


@pytest.fixture(autouse=True)
def _server(prefect_server: None) -> None:
    """Flows find the test server instead of starting their own."""
