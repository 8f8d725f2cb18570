"""Rows survive a kill, are not measured twice, and are measured again where more is asked."""

import json
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from bench.case import Settings
from bench.contenders import Stop, table
from bench.models import EMOJI, REFERENCE_MODELS
from bench.requests import Request
from bench.rows import Rows, row_key
from bench.worklist import Asked, Work, parse_audits, parse_sizes, worklist
from contracts.canonical import digest, file_sha256, from_plain
from contracts.errors import InputError
from contracts.values import Method
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


def works(models: dict[str, Path], audits: str = "none", **changes: Any) -> list[Work]:
    settings = Settings()
    asked = Asked(
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
    house = Rules(*("",) * 6, method={"forget_at": 1, "micro_batch": 7})
    return worklist(asked, REQUESTS, {"object": house, "style": house})


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


@pytest.mark.parametrize("audits", ["prob", "probe:x", "distance", ""])
def test_unknown_audits_are_refused(audits: str) -> None:
    with pytest.raises(InputError, match="unknown audit"):
        parse_audits(audits, Settings())


# --- the rows in this repository -----------------------------------------------------------------------


@pytest.mark.parametrize("results", ["gold-1", "layers-1", "seed-1", "stop-1", "towers-1"])
def test_shipped_rows_have_the_keys_that_this_code_gives_them(results: str) -> None:
    """A new field of `Method` renames every method: the rows need new keys, or hours are measured again."""
    weights = ROOT / REFERENCE_MODELS[EMOJI][0] / WEIGHTS
    if not weights.exists():
        pytest.skip("the reference model is not here: dvc pull data/models/reference")
    model = file_sha256(weights)
    text = (ROOT / "bench/results" / results / "rows.jsonl").read_text(encoding="utf-8")
    own = [row for row in map(json.loads, text.splitlines()) if row["model"] == EMOJI and row["method"]]
    assert own
    for row in own:
        method = digest(from_plain(Method, row["method"]))
        assert row_key(model, row["targets"], method) == row["key"]
