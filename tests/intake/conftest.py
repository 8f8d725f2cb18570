"""The ledger tests run on SQLite, and on PostgreSQL where SLUGLINE_TEST_POSTGRES_URL names a server."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from intake.database import open_engine, transaction
from intake.ledger import Ledger

POSTGRES = "SLUGLINE_TEST_POSTGRES_URL"


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty ledger of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server = os.environ.get(POSTGRES)
    if not server:
        pytest.skip(f"{POSTGRES} names no PostgreSQL server")
    schema = f"test_{secrets.token_hex(6)}"
    with transaction(open_engine(server)) as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    url = make_url(server).update_query_dict({"options": f"-csearch_path={schema}"})
    yield url.render_as_string(hide_password=False)
    with transaction(open_engine(server)) as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))


@pytest.fixture
def locks(tmp_path: Path) -> Path:
    """The lock folder of "this machine"."""
    folder = tmp_path / "locks"
    folder.mkdir()
    return folder


@pytest.fixture
def ledger(ledger_url: str, locks: Path) -> Ledger:
    """An empty ledger."""
    return Ledger(ledger_url, locks)
