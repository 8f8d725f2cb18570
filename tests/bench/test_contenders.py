"""Every method is compared, told something it accepts, and stopped as the table says."""

from pathlib import Path

import pytest

from bench.contenders import COMMON, Stop, contenders, read_table, table
from contracts.errors import InputError
from contracts.values import Axis, Method
from unlearning import methods

STOPS: dict[Axis, Stop] = {"object": Stop(), "style": Stop(at=1)}


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
    found = contenders(known, (), "object", {**STOPS, "object": Stop(at=10, share=0.02)})
    assert {(c.method.forget_at, c.method.forget_target) for c in found if c.method} == {(10, 0.02)}


def test_a_share_alone_leaves_everybodys_own_place_in_the_ranking(known: dict[str, Method]) -> None:
    found = contenders(known, (), "object", {**STOPS, "object": Stop(share=0.02)})
    own = {c.label: c.method for c in found if c.method}
    assert {method.forget_target for method in own.values()} == {0.02}
    assert {label: method.forget_at for label, method in own.items()} == {
        label: method.forget_at for label, method in known.items()
    }
    assert own["per-tower step"].options == known["per-tower step"].options


def test_contenders_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "contenders.yaml"
    file.write_text("damped: {name: slug-preconditioned, towers: [text], options: {epsilon: 0.1}}\n")
    (method,) = read_table(file).values()
    assert (method.name, method.towers, method.options) == (
        "slug-preconditioned",
        ("text",),
        {"epsilon": 0.1},
    )
    assert method.micro_batch == COMMON["micro_batch"]


@pytest.mark.parametrize("text", ["- slug\n", "slug: 5\n", "slug: {nam: slug}\n", "slug: {"])
def test_a_file_that_tells_no_methods_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "contenders.yaml"
    file.write_text(text)
    with pytest.raises(InputError):
        read_table(file)


def test_only_the_picked_run_and_an_unknown_one_is_refused(known: dict[str, Method]) -> None:
    assert [c.label for c in contenders(known, ("slug", "ccup"), "object", STOPS)] == ["slug", "ccup"]
    with pytest.raises(InputError, match="'slugg'"):
        contenders(known, ("slugg",), "object", STOPS)
