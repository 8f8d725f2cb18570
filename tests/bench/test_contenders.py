"""Every method is compared, told something it accepts, and stopped as the table says."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.contenders import COMMON, Contender, Stop, contenders, read_table, resolved, table
from contracts.errors import InputError
from contracts.values import Axis, Method
from unlearning import methods
from unlearning.methods import slug_preconditioned

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


# --- what a method is told, and what its defaults say ----------------------------------------------------


def sha256(name: str, **options: object) -> str:
    return Contender("x", Method(name, options=options)).sha256


def test_a_default_that_is_told_makes_no_other_method() -> None:
    epsilon = slug_preconditioned.Options().epsilon
    assert sha256("slug-preconditioned") == sha256("slug-preconditioned", epsilon=epsilon)
    assert sha256("slug-preconditioned") != sha256("slug-preconditioned", epsilon=2 * epsilon)
    part = {"name": "slug-preconditioned"}
    told = sha256("per-tower", text={**part, "options": {"epsilon": epsilon}})
    assert told == sha256("per-tower", text=part)
    assert sha256("per-tower", text={"name": "uce"}) == sha256("per-tower")


def test_a_changed_default_makes_another_method(monkeypatch: pytest.MonkeyPatch) -> None:
    part, before = {"name": "slug-preconditioned"}, slug_preconditioned.Options().epsilon
    by_itself, in_a_part = sha256("slug-preconditioned"), sha256("per-tower", text=part)

    @dataclass(frozen=True)
    class Options(slug_preconditioned.Options):
        epsilon: float = 0.25

    monkeypatch.setattr(slug_preconditioned, "Options", Options)
    assert sha256("slug-preconditioned") != by_itself
    assert sha256("per-tower", text=part) != in_a_part
    assert sha256("slug-preconditioned", epsilon=before) == by_itself


def test_a_resolved_method_is_accepted_and_resolves_to_itself(known: dict[str, Method]) -> None:
    for method in known.values():
        methods.check(resolved(method), n_classes=400)
        assert resolved(resolved(method)) == resolved(method)
    assert resolved(known["per-tower"]).options["vision"]["options"].keys() >= {"shrinkage", "layer", "most"}


@pytest.mark.parametrize("told", [{"name": "slugg"}, {"name": "uce", "options": {"epsilom": 1.0}}])
def test_what_a_method_refuses_is_refused_before_any_row(told: dict[str, object]) -> None:
    with pytest.raises(InputError):
        _ = Contender("x", Method(**told)).sha256  # type: ignore[arg-type]


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
