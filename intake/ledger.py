"""The durable ledger of deletion requests.

Events and schedules only point at its rows: losing an event loses nothing, and starting a request
twice runs it once.  Every change of state is one compare-and-set UPDATE, so two processes that race
for a request see exactly one winner on SQLite and PostgreSQL alike.
"""

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from contracts.canonical import digest, to_plain
from contracts.errors import InputError, PromotionConflict, SluglineError
from intake.claims import LEASE, Claim, RequestBusy
from intake.database import changes_one, create_schema, database_errors, open_engine, transaction
from intake.locks import FileLock
from intake.requests import (
    TRANSITIONS,
    Evidence,
    NewRequest,
    Request,
    State,
    check_request_id,
    legal_deadline,
)
from intake.tables import EVIDENCE_COLUMNS, LEASE_COLUMNS, METADATA, REQUESTS


class Ledger:
    """Requests in SQLite or PostgreSQL; safe to open in any number of processes at once."""

    def __init__(self, url: str, locks: Path) -> None:
        """Open the ledger, creating its tables on first use.

        Args:
            url: `sqlite:///...` or `postgresql://...`.
            locks: folder of this machine's lock files.

        Raises:
            InputError: the URL names another kind of database.
            StoreUnreachable: it does not answer; the message shows the URL without credentials.
        """
        self.engine = open_engine(url)
        self._locks = locks
        create_schema(self.engine, METADATA)

    def add(
        self, new: NewRequest, idempotency_key: str | None = None, received: datetime | None = None
    ) -> Request:
        """Record a request; the same content under the same key is the same request.

        Args:
            new: the checked request.
            idempotency_key: any text of the caller; only a digest over it and the content is kept,
                as the id.  None makes a random id: two calls are two requests.
            received: when the deadline starts to run (aware); None is now.

        Raises:
            InputError: that request exists with other options.
            StoreUnreachable: the ledger does not answer.
        """
        now = received or _now()
        request_id = "req-" + (
            secrets.token_hex(8) if idempotency_key is None else _content_id(new, idempotency_key)
        )
        row = {
            "id": request_id,
            **to_plain(new),
            "state": "received",
            "deadline": legal_deadline(now),
            "created": now,
            "updated": now,
            "attempts": 0,
        }
        with database_errors(self.engine):
            try:
                with self.engine.begin() as connection:
                    connection.execute(insert(REQUESTS).values(row))
            except IntegrityError:
                pass  # somebody was first: theirs is the request
        request = self.get(request_id)
        if to_plain(request.options) != to_plain(new.options):
            raise InputError(f"request {request_id} exists already with other options")
        return request

    def get(self, request_id: str) -> Request:
        """One request.

        Raises:
            InputError: the id is malformed or unknown.
            StoreUnreachable: the ledger does not answer.
        """
        return _to_request(self._row(request_id))

    def list(self, model: str | None = None, states: Sequence[State] = ()) -> tuple[Request, ...]:
        """Requests by deadline, of one model and in some states if asked for."""
        query = select(REQUESTS).order_by(REQUESTS.c.deadline, REQUESTS.c.id)
        if model is not None:
            query = query.where(REQUESTS.c.model == model)
        if states:
            query = query.where(REQUESTS.c.state.in_(states))
        with transaction(self.engine) as connection:
            return tuple(_to_request(row) for row in connection.execute(query))

    def due(self, within: timedelta = timedelta(0), now: datetime | None = None) -> tuple[Request, ...]:
        """Requests still owed (neither passed nor cancelled) whose deadline ends within that time."""
        end = (now or _now()) + within
        owed = self.list(states=("received", "running", "failed", "insufficient", "error"))
        return tuple(r for r in owed if r.deadline <= end)

    def cancel(self, request_id: str) -> Request:
        """Withdraw a request that has not run, or whose last attempt ended in an error.

        Raises:
            InputError: it is unknown, running or decided.
        """
        state = self.get(request_id).state
        if "cancelled" in TRANSITIONS[state]:
            unchanged = update(REQUESTS).where(REQUESTS.c.id == request_id, REQUESTS.c.state == state)
            if changes_one(self.engine, unchanged.values(state="cancelled", updated=_now())):
                return self.get(request_id)
            state = self.get(request_id).state
        raise InputError(f"request {request_id} is {state} and cannot be cancelled")

    @contextmanager
    def claim(self, request_id: str) -> Iterator[Claim]:
        """Run a request: entering makes it `running`, for exactly one process.

        Leaving by an exception, or without `finish`, records `error`.  A request whose process was
        killed can be claimed again at once on the same machine (the kernel freed its lock), and
        elsewhere when its lease has run out.

        Raises:
            InputError: the request is unknown.
            RequestBusy: another process runs it, or it is decided or cancelled.
        """
        lock = FileLock(self._locks / f"{check_request_id(request_id)}.lock")
        try:
            lock.acquire()
        except PromotionConflict:
            raise RequestBusy(f"request {request_id} is being run by another process") from None
        try:
            claim = self._take(request_id)
            try:
                yield claim
            except BaseException as error:
                if not claim.finished:
                    # A ledger that is gone, or a claim that was lost, must not hide what went wrong;
                    # the row stays `running` and can be claimed again.
                    with suppress(SluglineError):
                        claim.finish("error", error=type(error).__name__)
                raise
            if not claim.finished:
                claim.finish("error", error="Unfinished")
        finally:
            lock.release()

    def _take(self, request_id: str) -> Claim:
        """Compare-and-set to `running`; the caller holds this machine's lock of the request."""
        row = self._row(request_id)
        if "running" not in TRANSITIONS[row.state]:
            raise RequestBusy(f"request {request_id} is {row.state} and will not run again")
        now, token, domain = _now(), secrets.token_hex(16), self._domain()
        if row.state == "running" and row.lease_domain != domain and row.lease_expires > now:
            raise RequestBusy(
                f"request {request_id} is being run on another machine"
                f" until {row.lease_expires:%Y-%m-%d %H:%M} UTC"
            )
        unchanged = update(REQUESTS).where(
            REQUESTS.c.id == request_id,
            REQUESTS.c.state == row.state,
            REQUESTS.c.attempts == row.attempts,
        )
        taken = {
            "state": "running",
            "attempts": row.attempts + 1,
            "lease_token": token,
            "lease_domain": domain,
            "lease_expires": now + LEASE,
            "error": None,
            "updated": now,
        }
        if not changes_one(self.engine, unchanged.values(taken)):
            raise RequestBusy(f"request {request_id} was taken by another process just now")
        return Claim(self.engine, self.get(request_id), token)

    def _domain(self) -> str:
        """A random id of the lock folder: equal exactly where our file locks can see each other."""
        path = self._locks / "domain"
        with FileLock(self._locks / "domain.lock", timeout_s=5.0):
            if not path.exists() or not path.read_text():
                path.write_text(secrets.token_hex(16))
            return path.read_text()

    def _row(self, request_id: str) -> Row[Any]:
        with transaction(self.engine) as connection:
            found = connection.execute(select(REQUESTS).where(REQUESTS.c.id == check_request_id(request_id)))
            row = found.one_or_none()
        if row is None:
            raise InputError(f"there is no request {request_id}")
        return row


def _content_id(new: NewRequest, key: str) -> str:
    what = {name: value for name, value in to_plain(new).items() if name != "options"}
    return digest({**what, "key": hashlib.sha256(key.encode()).hexdigest()})[:16]


def _to_request(row: Row[Any]) -> Request:
    fields = dict(row._mapping)
    evidence = Evidence(**{name: fields.pop(name) for name in EVIDENCE_COLUMNS})
    for name in LEASE_COLUMNS:
        del fields[name]
    fields["targets"] = tuple(fields["targets"])
    return Request(**fields, evidence=evidence)


def _now() -> datetime:
    return datetime.now(UTC)
