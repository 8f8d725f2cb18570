"""Nothing but ids and option values can enter a request, and the legal deadline is never late."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import InputError
from intake.requests import NewRequest, legal_deadline

GOOD: dict[str, Any] = {
    "model": "clip",
    "axis": "object",
    "targets": ("c-0123abcd",),
    "forget_set": "data/forget/c-0123abcd",
}


def test_targets_are_a_set() -> None:
    request = NewRequest(**{**GOOD, "targets": ("c-ffffffff", "c-0123abcd", "c-ffffffff")})

    assert request.targets == ("c-0123abcd", "c-ffffffff")


@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": ()},
        {"targets": ("s-0123abcd",)},  # a style id on the object axis
        {"axis": "person"},
        {"model": "clip'; drop"},
        {"forget_set": "/etc/passwd"},
        {"forget_set": "data/../../x"},
        {"revision": "main"},
        {"options": {"method": "slug", "note": "please forget Jane Doe"}},
        {"options": {"mail": "jane@example.org"}},
        {"options": {"Jane Doe": 1}},
        {"options": {"seed": float("nan")}},
        {"options": {"seed": object()}},
        {"options": {"words": ["x" * 200] * 30}},
    ],
)
def test_what_is_not_opaque_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        NewRequest(**{**GOOD, **wrong})

    assert "Jane" not in str(caught.value)
    assert "jane" not in str(caught.value)


def test_a_concept_name_given_as_target_is_not_repeated_in_the_error() -> None:
    with pytest.raises(InputError, match="target 1 on axis object") as caught:
        NewRequest(**{**GOOD, "targets": ("hot beverage",)})

    assert "beverage" not in str(caught.value)


@pytest.mark.parametrize(
    ("received", "deadline"),
    [
        ("2026-03-10", "2026-04-09"),  # 31-day month: 30 days end first
        ("2026-04-10", "2026-05-10"),
        ("2027-01-31", "2027-02-28"),  # 30 days would be 2 March, past the month
        ("2028-01-30", "2028-02-29"),
        ("2026-12-31", "2027-01-30"),
    ],
)
def test_known_deadlines(received: str, deadline: str) -> None:
    start = datetime.fromisoformat(received).replace(tzinfo=UTC)

    assert legal_deadline(start) == datetime.fromisoformat(deadline).replace(tzinfo=UTC)


@given(st.datetimes(min_value=datetime(2018, 5, 25), max_value=datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_a_deadline_is_28_to_30_days_away(received: datetime) -> None:
    assert timedelta(days=28) <= legal_deadline(received) - received <= timedelta(days=30)
