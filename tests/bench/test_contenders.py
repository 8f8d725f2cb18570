"""Every method is compared, told something it accepts, and stopped as the table says."""

import pytest

from bench.contenders import contenders, table
from contracts.errors import InputError
from contracts.values import Axis, Method
from unlearning import methods

STOPS: dict[Axis, int | None] = {"object": None, "style": 1}


@pytest.fixture
def known() -> dict[str, Method]:
    return table(methods.names("clip"))


def test_every_method_stands_by_itself_and_stops_alike(known: dict[str, Method]) -> None:
    own = [known[name] for name in methods.names("clip")]
    assert [method.name for method in own] == list(methods.names("clip"))
    assert {(method.forget_at, method.forget_target, method.towers) for method in own} == {
        (5, 0.0, ("vision", "text"))
    }


def test_every_contender_is_told_what_its_method_accepts(known: dict[str, Method]) -> None:
    for method in known.values():
        methods.check(method, n_classes=400)


def test_all_search_with_the_same_budget_and_templates(known: dict[str, Method]) -> None:
    # `bench.case` reads the inputs once for all of them.
    assert len({(method.search_templates, method.search_steps) for method in known.values()}) == 1


def test_no_two_contenders_are_the_same(known: dict[str, Method]) -> None:
    assert len({c.sha256 for c in contenders(known, (), "object", STOPS)}) == len(known)


def test_on_styles_everybody_stops_where_the_house_does(known: dict[str, Method]) -> None:
    found = [c.method for c in contenders(known, (), "style", STOPS) if c.method]
    assert {method.forget_at for method in found} == {1}
    assert not any("forget_at" in str(method.options) for method in found)  # nor does a part stop elsewhere


def test_one_stop_for_all_can_be_asked_for(known: dict[str, Method]) -> None:
    found = contenders(known, (), "object", {**STOPS, "object": 10})
    assert {c.method.forget_at for c in found if c.method} == {10}


def test_only_the_picked_run_and_an_unknown_one_is_refused(known: dict[str, Method]) -> None:
    assert [c.label for c in contenders(known, ("slug", "ccup"), "object", STOPS)] == ["slug", "ccup"]
    with pytest.raises(InputError, match="'slugg'"):
        contenders(known, ("slugg",), "object", STOPS)
