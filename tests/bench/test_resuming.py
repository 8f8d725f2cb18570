"""Rows survive a kill, are not measured twice, and are measured again where more is asked."""

import json
from argparse import ArgumentTypeError
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import bench.worklist
from bench.case import Settings
from bench.compare import _house_labels
from bench.contenders import Stop, resolved, table
from bench.models import EMOJI, REFERENCE_MODELS
from bench.requests import Request
from bench.rows import Rows, row_key
from bench.worklist import Asked, Work, World, measure, parse_audits, parse_sizes, worklist
from contracts.canonical import digest, file_sha256, from_plain, to_plain
from contracts.errors import InputError
from contracts.values import Axis, Method
from tasks.house import Rules
from unlearning.families.config import WEIGHTS

ROOT = Path(__file__).parents[2]


def row(key: str, **changes: Any) -> dict[str, Any]:
    return {"key": key, "error": None, "audits": {}, **changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def test_rows_are_there_for_the_next_process(path: Path) -> None:
    Rows(path).append(row("a"))
    assert Rows(path).holds("a", {})
    assert not Rows(path).holds("b", {})


def test_of_equal_keys_the_last_row_counts(path: Path) -> None:
    rows = Rows(path)
    for n in (1, 2):
        rows.append(row("a", n=n))
    assert [found["n"] for found in Rows(path).of(["a"])] == [2]


def test_what_a_killed_writer_left_is_no_row_and_spoils_none(path: Path) -> None:
    Rows(path).append(row("a"))
    with path.open("a") as stream:
        stream.write(json.dumps(row("b"))[:-5])
    rows = Rows(path)
    assert not rows.holds("b", {})
    rows.append(row("c"))
    assert [found["key"] for found in Rows(path).of(["a", "b", "c"])] == ["a", "c"]


def test_a_row_without_an_audit_or_with_other_settings_is_measured_again(path: Path) -> None:
    rows = Rows(path)
    rows.append(row("a", audits={"relearn": {"settings": {"steps": 50}}}))
    assert rows.holds("a", {"relearn": {"steps": 50}})
    assert rows.holds("a", {})
    assert not rows.holds("a", {"relearn": {"steps": 10}})
    assert not rows.holds("a", {"probe": {}})


def test_an_expected_error_is_a_result_and_a_crash_is_not(path: Path) -> None:
    rows = Rows(path)
    rows.append(row("a", error={"class": "ModelError", "message": "", "expected": True}))
    rows.append(row("b", error={"class": "KeyError", "message": "", "expected": False}))
    assert rows.holds("a", {"probe": {}})
    assert not rows.holds("b", {})


def test_the_key_is_of_model_targets_and_method() -> None:
    keys = {
        row_key(*each)
        for each in (("m", ["c"], "x"), ("n", ["c"], "x"), ("m", ["d"], "x"), ("m", ["c"], "y"))
    }
    assert len(keys) == 4


# --- what is asked for -------------------------------------------------------------------------------

REQUESTS = (Request("single", ("c-1",)), Request("single", ("c-2",)), Request("style", ("s-1",)))


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    for name in ("one", "two", "gold/one/single-c-2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights.safetensors").write_bytes(name.encode())
    return {name: tmp_path / name for name in ("one", "two")}


HOUSE = Rules(*("",) * 6, method={"name": "uce", "forget_at": 1, "micro_batch": 7})
HOUSES: dict[Axis, Rules] = {"object": HOUSE, "style": HOUSE}


def asked_for(models: dict[str, Path], audits: str = "none", **changes: Any) -> Asked:
    settings = Settings()
    return Asked(
        **{
            "models": models,
            "table": table(("slug", "ccup")),
            "picked": ("slug", "ccup"),
            "headlines": ("slug",),
            "seeds": (),
            "stop": Stop(),
            "audits": parse_audits(audits, settings),
            "settings": settings,
            "retrained": None,
            "threads": 1,
            **changes,
        }
    )


def works(models: dict[str, Path], audits: str = "none", **changes: Any) -> list[Work]:
    return worklist(asked_for(models, audits, **changes), REQUESTS, HOUSES)


def test_one_row_for_every_model_request_and_contender(models: dict[str, Path]) -> None:
    found = works(models)
    assert len({work.key for work in found}) == len(found) == 2 * 3 * 2


def test_sizes_are_a_range_with_both_ends() -> None:
    assert list(parse_sizes("9-11")) == [9, 10, 11]
    for text in ("9", "11-9", "a-b", "-3"):
        with pytest.raises(ArgumentTypeError):
            parse_sizes(text)


def test_an_audit_can_be_limited_to_the_first_requests_of_each_kind(models: dict[str, Path]) -> None:
    found = works(models, "probe,relearn:1")
    with_relearn = {work.request.name for work in found if "relearn" in work.audits}
    assert with_relearn == {"single-c-1", "style-s-1"}
    assert all("probe" in work.audits for work in found)


def test_a_retrained_model_is_measured_and_compared_with(models: dict[str, Path], tmp_path: Path) -> None:
    found = works(models, retrained=tmp_path / "gold")
    gold = [work for work in found if work.gold is not None]
    assert {(work.model, work.request.name) for work in gold} == {("one", "single-c-2")}
    assert [work.contender.label for work in gold] == ["retrained", "slug", "ccup"]
    assert ["distance" in work.audits for work in gold] == [False, True, True]


def test_other_training_seeds_get_the_headline_rows_only(models: dict[str, Path]) -> None:
    found = works(models, seeds=("two",))
    labels = {model: {work.contender.label for work in found if work.model == model} for model in models}
    assert labels == {"one": {"slug", "ccup"}, "two": {"slug"}}


def test_everybody_takes_as_many_items_at_a_time_as_the_house(models: dict[str, Path]) -> None:
    assert {work.contender.method.micro_batch for work in works(models) if work.contender.method} == {7}


UCE = Method("uce", forget_at=1)
# The same by today's defaults, and not as it is told.
TWINS = {
    "plain": UCE,
    "told": replace(UCE, options={"least": 1.0}),
    "other": replace(UCE, options={"least": 0.0}),
}


def test_a_contender_told_a_default_shares_the_row_of_one_told_nothing(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def trial(case: Any, contender: Any, *others: Any) -> dict[str, Any]:
        measured.append(contender.label)
        return {"label": contender.label, "error": None, "audits": {}}

    for name, instead in (("trial", trial), ("_load", lambda *told: (None, None))):
        monkeypatch.setattr(bench.worklist, name, instead)
    monkeypatch.setattr(bench.worklist, "_case", lambda *told: True)
    monkeypatch.setattr(bench.worklist, "commit", lambda repo: "0" * 40)
    asked = asked_for({"one": models["one"]}, table=TWINS, picked=())
    found = measure(asked, World(tmp_path, {}, {}), worklist(asked, REQUESTS[:1], HOUSES), tmp_path / "out")
    assert measured == ["plain", "other"]
    assert [row["label"] for row in found] == ["plain", "told", "other"], "each under its own name"
    assert found[0]["key"] == found[1]["key"] != found[2]["key"]


def test_the_house_s_own_method_is_found_however_its_options_are_told(models: dict[str, Path]) -> None:
    found = works(models, table={label: TWINS[label] for label in ("told", "other")}, picked=())
    single = next(work for work in found if work.contender.label == "told")
    assert single.contender.method is not None
    house = replace(HOUSE, method={**to_plain(single.contender.method), "options": {}})
    assert _house_labels(found, {"object": house, "style": house}) == {"single": "told", "style": "told"}


@pytest.mark.parametrize("audits", ["prob", "probe:x", "distance", ""])
def test_unknown_audits_are_refused(audits: str) -> None:
    with pytest.raises(InputError, match="unknown audit"):
        parse_audits(audits, Settings())


# --- the rows in this repository -----------------------------------------------------------------------


@pytest.mark.parametrize("results", ["gold-1", "layers-1", "seed-1", "stop-1", "towers-1"])
def test_shipped_rows_have_the_keys_that_this_code_gives_them(results: str) -> None:
    """Rows say with which options they were measured, told or not, and are keyed by that.

    A new field of `Method`, or a new option of a method, renames it: the rows need its value at the time and
    new keys, or hours are measured again.
    """
    weights = ROOT / REFERENCE_MODELS[EMOJI][0] / WEIGHTS
    if not weights.exists():
        pytest.skip("the reference model is not here: dvc pull data/models/reference")
    model = file_sha256(weights)
    text = (ROOT / "bench/results" / results / "rows.jsonl").read_text(encoding="utf-8")
    own = [row for row in map(json.loads, text.splitlines()) if row["model"] == EMOJI and row["method"]]
    assert own
    for row in own:
        method = from_plain(Method, row["method"])
        assert to_plain(resolved(method)) == row["method"], "no option is left to what its default is today"
        known = row.get("retain_known", False)
        assert row_key(model, row["targets"], digest(method), known) == row["key"]
