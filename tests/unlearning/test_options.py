"""Options out of their range: refused by every method alike, before any work."""

from dataclasses import dataclass, fields
from math import inf, nan
from typing import Any, get_args, get_type_hints

import pytest

from contracts.canonical import from_plain
from contracts.errors import InputError
from unlearning import methods
from unlearning.options import check_numbers

OWN = [
    (name, field.name, get_type_hints(methods.method_named(name).Options)[field.name])
    for name in methods.names()
    for field in fields(methods.method_named(name).Options)
]
NUMBERS = [(name, option, kind) for name, option, kind in OWN if {int, float} & {kind, *get_args(kind)}]


@dataclass(frozen=True)
class Some:
    one: float | None = 0.5
    grid: tuple[float, ...] = (0.5, 1.0)


@pytest.mark.parametrize(
    ("some", "bounds", "said"),
    [
        (Some(0.0), {"above": 0}, "one must be above 0, got 0.0"),
        (Some(-0.1), {"at_least": 0}, "one must be at least 0, got -0.1"),
        (Some(1.0), {"at_least": 0, "below": 1}, "one must be at least 0 and below 1, got 1.0"),
        (Some(1.5), {"at_least": 0, "at_most": 1}, "one must be at least 0 and at most 1, got 1.5"),
        (Some(nan), {"above": 0}, "one must be finite and above 0, got nan"),
        (Some(inf), {"at_least": 0}, "one must be finite and at least 0, got inf"),
        (Some(grid=()), {"above": 0}, "grid must hold at least one number, got ()"),
        (Some(grid=(0.1, nan)), {"above": 0}, "grid must be finite and above 0, got (0.1, nan)"),
        (Some(grid=(0.1, 0.0)), {"above": 0}, "grid must be above 0, got (0.1, 0.0)"),
    ],
)
def test_the_message_names_option_range_and_value(some: Some, bounds: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        check_numbers(some, "one", "grid", **bounds)
    assert str(caught.value) == said


def test_what_lies_in_its_range_passes() -> None:
    check_numbers(Some(), "one", "grid", above=0, at_most=1)
    check_numbers(Some(0.0), "one", at_least=0, below=1)
    check_numbers(Some(None), "one", above=0)


def test_methods_have_numbers_to_check() -> None:
    assert {name for name, _, _ in NUMBERS} >= {
        "razor",
        "scrub",
        "slug-preconditioned",
        "ssd",
        "uce",
        "unsay",
    }
    assert len(NUMBERS) > 50


@pytest.mark.parametrize(("name", "option", "kind"), NUMBERS)
def test_every_method_refuses_what_is_no_number_of_its_range(name: str, option: str, kind: Any) -> None:
    own = methods.method_named(name).Options
    default = getattr(own(), option)
    if isinstance(default, tuple):
        bad: list[Any] = [(), (*default, nan), (inf, *default), (*default, -1.0)]
    else:
        bad = [-1] if kind is int else [nan, inf, -inf, -1.0]
    from_plain(own, {option: default})
    for value in bad:
        with pytest.raises(InputError, match=rf"\b{option} must"):
            from_plain(own, {option: value})
