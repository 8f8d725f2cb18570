"""One SQLAlchemy engine per ledger URL, with the same guarantees on SQLite and PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DateTime,
    Dialect,
    Engine,
    MetaData,
    NullPool,
    TypeDecorator,
    Update,
    create_engine,
    event,
    text,
)
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from contracts.errors import InputError, StoreUnreachable

CONNECT_TIMEOUT_S = 5
BUSY_TIMEOUT_S = 20
# Any fixed number, the same in every process: whoever creates the tables holds this lock meanwhile.
_SCHEMA_LOCK_KEY = 0x736C7567


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on every backend (SQLite has no time zones and would hand back naive values)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Aware time to naive UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Naive UTC to aware time."""
        return None if value is None else value.replace(tzinfo=UTC)


def open_engine(ledger_url: str) -> Engine:
    """An engine whose transactions are serialised; it connects on first use.

    Raises:
        InputError: the URL is malformed or names a database other than SQLite and PostgreSQL.
    """
    try:
        url = make_url(ledger_url)
    except ArgumentError:
        raise InputError(
            "the ledger URL cannot be read; expected sqlite:///... or postgresql://..."
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY_TIMEOUT_S})
        # pysqlite opens transactions late and never around DDL; with BEGIN IMMEDIATE two processes
        # queue at the start instead of failing half-way with "database is locked".
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_immediate)
        return engine
    if backend in ("postgresql", "postgres"):
        arguments = {"connect_timeout": CONNECT_TIMEOUT_S}
        try:
            return create_engine(
                url.set(drivername="postgresql+psycopg"), poolclass=NullPool, connect_args=arguments
            )
        except (ImportError, NoSuchModuleError):
            raise InputError("a PostgreSQL ledger needs the package psycopg") from None
    raise InputError(f"a ledger is kept in SQLite or PostgreSQL, not in {backend!r}")


@contextmanager
def database_errors(engine: Engine) -> Iterator[None]:
    """Turn the driver's failures into one sentence that holds neither password nor row values.

    Raises:
        StoreUnreachable: the database refused, vanished or cannot be written.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = type(error.orig).__name__ if isinstance(error, DBAPIError) else type(error).__name__
        raise StoreUnreachable(f"the ledger {public_url(engine.url)} does not answer ({cause})") from None


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction: committed at the end, rolled back on any exception.

    Raises:
        StoreUnreachable: as `database_errors`.
    """
    with database_errors(engine), engine.begin() as connection:
        yield connection


def changes_one(engine: Engine, compare_and_set: Update) -> bool:
    """Run an UPDATE whose WHERE states what must still hold; whether it did, for exactly one row.

    Raises:
        StoreUnreachable: as `database_errors`.
    """
    with transaction(engine) as connection:
        return connection.execute(compare_and_set).rowcount == 1


def create_schema(engine: Engine, metadata: MetaData) -> None:
    """Create missing tables: all or none, also when several processes come first at once.

    Raises:
        StoreUnreachable: as `database_errors`.
    """
    with transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _SCHEMA_LOCK_KEY})
        metadata.create_all(connection)


def public_url(url: URL) -> str:
    """The URL without user, password and options (psycopg takes a password there too)."""
    return url.set(username=None, password=None, query={}).render_as_string()


def _leave_transactions_to_us(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
