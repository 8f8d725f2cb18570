"""A deletion request as a value: its fields, its states, and what may stand in them."""

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import isfinite
from pathlib import PurePosixPath
from typing import Any, Literal, get_args

from contracts.canonical import canonical_bytes
from contracts.errors import InputError
from contracts.values import Axis

State = Literal["received", "running", "passed", "failed", "insufficient", "error", "cancelled"]
Outcome = Literal["passed", "failed", "insufficient", "error"]
STATES: tuple[State, ...] = get_args(State)
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

# Every legal change of state.  running -> running is the takeover of a request whose process died.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    "received": frozenset({"running", "cancelled"}),
    "running": frozenset({"running", *OUTCOMES}),
    "error": frozenset({"running", "cancelled"}),
    "passed": frozenset(),
    "failed": frozenset(),
    "insufficient": frozenset(),
    "cancelled": frozenset(),
}

REQUEST_ID = re.compile(r"req-[0-9a-f]{16}")
_TARGET: Mapping[Axis, re.Pattern[str]] = {
    "object": re.compile(r"c-[0-9a-f]{8}"),
    "style": re.compile(r"s-[0-9a-f]{8}"),
}
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_REVISION = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SET_PATH = re.compile(r"[A-Za-z0-9._/-]{1,200}")
_OPTION_NAME = re.compile(r"[a-z][a-z0-9_.]{0,59}")
_OPTION_TEXT = re.compile(r"[A-Za-z0-9._:/+-]{0,200}")
_OPTION_BYTES = 4096

GDPR_DAYS = 30


@dataclass(frozen=True)
class NewRequest:
    """What a caller asks for; checked so that nothing personal can enter the ledger.

    Attributes:
        model: registered model name.
        axis: label axis of the targets.
        targets: opaque ids (`c-` or `s-` and 8 hex digits), at least one; kept sorted.
        forget_set: path of the DVC-tracked set, relative to the repository root.
        revision: git commit of the set, or None until it is pinned.
        options: overrides of method and gates (numbers, flags, short words), nested at will.

    Raises:
        InputError: a field does not match its pattern.
    """

    model: str
    axis: Axis
    targets: tuple[str, ...]
    forget_set: str
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _match("model name", _MODEL, self.model)
        if self.axis not in _TARGET:
            raise InputError(f"axis {self.axis!r} is neither 'object' nor 'style'")
        if not self.targets:
            raise InputError("a request needs at least one target id")
        for position, target in enumerate(self.targets, start=1):
            _match_withheld(f"target {position} on axis {self.axis}", _TARGET[self.axis], target)
        object.__setattr__(self, "targets", tuple(sorted(set(self.targets))))
        _match("forget set path", _SET_PATH, self.forget_set)
        path = PurePosixPath(self.forget_set)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"forget set path {self.forget_set!r} leaves the repository")
        if self.revision is not None:
            check_revision(self.revision)
        _check_options(self.options)
        if len(canonical_bytes(self.options)) > _OPTION_BYTES:
            raise InputError(f"the options of a request take more than {_OPTION_BYTES} bytes")


@dataclass(frozen=True)
class Evidence:
    """What a finished attempt points at; `certificate` and `report` are paths.

    Raises:
        InputError: a digest is not a hex sha256.
    """

    version: str | None = None
    plan_sha256: str | None = None
    certificate: str | None = None
    certificate_sha256: str | None = None
    report: str | None = None
    verdict: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("plan_sha256", "certificate_sha256"):
            if getattr(self, name) is not None:
                _match(name, _SHA256, getattr(self, name))


@dataclass(frozen=True)
class Request:
    """One row of the ledger."""

    id: str
    model: str
    axis: Axis
    targets: tuple[str, ...]
    forget_set: str
    revision: str | None
    options: Mapping[str, Any]
    state: State
    deadline: datetime
    created: datetime
    updated: datetime
    attempts: int
    plan: Mapping[str, Any] | None
    error: str | None
    evidence: Evidence


def check_request_id(request_id: str) -> str:
    """The id unchanged.

    Raises:
        InputError: it is not `req-` and 16 hex digits.
    """
    _match_withheld("the request id", REQUEST_ID, request_id)
    return request_id


def check_revision(revision: str) -> str:
    """The commit id unchanged.

    Raises:
        InputError: it is a branch, a tag or an abbreviation, which may name other bytes tomorrow.
    """
    _match("git commit", _REVISION, revision)
    return revision


def legal_deadline(received: datetime) -> datetime:
    """When a request must be answered: 30 days or one calendar month, whichever ends first.

    GDPR art. 12(3) gives one month from receipt; Regulation 1182/71 art. 3(2)(c) ends it on the same
    day of the next month, or on that month's last day, which in February is less than 30 days away.
    """
    year, month = divmod(received.year * 12 + received.month, 12)
    last_day = calendar.monthrange(year, month + 1)[1]
    a_month_on = received.replace(year=year, month=month + 1, day=min(received.day, last_day))
    return min(received + timedelta(days=GDPR_DAYS), a_month_on)


def _check_options(value: Any, where: str = "options") -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _match_withheld(f"a name in {where}", _OPTION_NAME, name)
            _check_options(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_options(item, where)
    elif isinstance(value, str):
        _match_withheld(where, _OPTION_TEXT, value)
    elif not (
        value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value))
    ):
        raise InputError(f"{where}: {type(value).__name__} values must be finite numbers, flags or words")


def _match(what: str, pattern: re.Pattern[str], value: Any) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InputError(f"{what} {value!r} does not match {pattern.pattern}")


def _match_withheld(what: str, pattern: re.Pattern[str], value: Any) -> None:
    # What is no opaque id may be a concept's name or a person's: the message must not repeat it.
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InputError(f"{what} does not match {pattern.pattern} (value withheld, it may be personal)")
