"""The gate file: the default one loads, and one that could not decide an erasure is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from contracts.errors import InputError
from gates.suite import DEFAULT_SUITE, load_suite

Document = dict[str, Any]


def _load(document: Document, folder: Path):
    path = folder / "gates.yaml"
    with path.open("w") as stream:
        YAML(typ="safe").dump(document, stream)
    return load_suite(path)


def _default() -> Document:
    return YAML(typ="safe").load(DEFAULT_SUITE.read_text())


def _first(key: str, value: object) -> Callable[[Document], None]:
    """Set one field of the first gate: `forget.fa1.after.upper95 <= 0.10`, kind erasure."""

    def edit(document: Document) -> None:
        gate = document["expectations"][0]
        part = {"column": "kwargs", "max_value": "kwargs", "min_value": "kwargs", "kind": "meta"}.get(key)
        (gate[part] if part else gate)[key] = value

    return edit


def _without(kind: str) -> Callable[[Document], None]:
    def edit(document: Document) -> None:
        document["expectations"] = [g for g in document["expectations"] if g["meta"]["kind"] != kind]

    return edit


def _double(document: Document) -> None:
    document["expectations"].append(
        document["expectations"][0] | {"kwargs": dict(_default()["expectations"][0]["kwargs"])}
    )


def test_default_suite_holds_the_bounds_that_were_fixed_beforehand() -> None:
    suite = load_suite(DEFAULT_SUITE)
    assert {gate.name: gate.kind for gate in suite.gates} == {
        "forget.fa1.after.upper95 <= 0.1": "erasure",
        "forget.fa5.after.upper95 <= 0.2": "erasure",
        "retain.ta1.drop.upper95 <= 0.05": "utility",
        "retain.ta5.drop.upper95 <= 0.05": "utility",
        "neighbours.ta1.drop.upper95 <= 0.15": "utility",
        "cross.ta1.drop.upper95 <= 0.05": "utility",
        "forget.fa1.after.n >= 30": "evidence",
        "forget.fa1.after.clusters >= 2": "evidence",
        "forget.fa1.before.lower95 >= 0.1": "evidence",
        "retain.ta1.after.n >= 200": "evidence",
        "control.fa1.after.n >= 30": "evidence",
    }
    assert all(gate.why for gate in suite.gates)
    assert suite.sha256 == hashlib.sha256(DEFAULT_SUITE.read_bytes()).hexdigest()


def test_an_edited_bound_changes_the_digest(tmp_path: Path) -> None:
    document = _default()
    before = _load(document, tmp_path).sha256
    document["expectations"][0]["kwargs"]["max_value"] = 0.2
    assert _load(document, tmp_path).sha256 != before


def test_one_neighbour_may_be_gated_by_its_id(tmp_path: Path) -> None:
    document = _default()
    document["expectations"][4]["kwargs"]["column"] = "neighbour.c-0a1b2c3d.ta1.drop.upper95"
    assert _load(document, tmp_path).gates[4].column == "neighbour.c-0a1b2c3d.ta1.drop.upper95"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            _first("column", "forget.fa1.after.uper95"),
            "'forget.fa1.after.uper95'.*'forget.fa1.after.upper95'",
        ),
        (_first("column", None), "unknown metric None"),
        (
            _first("type", "expect_column_values_to_be_between"),
            "'expect_column_values_to_be_between'.*nearest",
        ),
        (_first("type", None), "unknown expectation type None"),
        (_first("kind", "erasing"), "unknown kind 'erasing'; the nearest known one is 'erasure'"),
        (_first("max_value", None), "max_value is missing"),
        (_first("max_value", "0.1"), "finite number, got '0.1'"),
        (_first("max_value", float("nan")), "finite number, got nan"),
        (_first("max_value", True), "finite number, got True"),
        (_first("max_value", 1.0), "can never fail"),
        (_first("max_value", -0.1), "can never pass"),
        (_first("min_value", 0.0), "unknown key 'min_value'; the nearest known one is 'max_value'"),
        (_first("severity", "warning"), "unknown key 'severity'"),
        (_first("column", "forget.fa1.after.estimate"), "an erasure gate bounds"),
        (_first("column", "forget.fa1.before.upper95"), "an erasure gate bounds"),
        (_first("column", "control.fa1.after.upper95"), "an erasure gate bounds"),
        (_first("meta", {"why": "because"}), "'meta' must hold a kind"),
        (_first("kwargs", None), "'kwargs' must hold column and max_value"),
        (_without("erasure"), "no erasure gate"),
        (_without("utility"), "no utility gate"),
        (_double, "'forget.fa1.after.upper95' has two gates"),
        (lambda d: d.pop("name"), "'name' must be a word"),
        (lambda d: d.update(expectations=[]), "at least one gate"),
        (
            lambda d: d.update(expectation=[]),
            "unknown key 'expectation'; the nearest known one is 'expectations'",
        ),
        (lambda d: d.update(expectations=["fa1 < 0.1"]), "expected type, kwargs and meta, got 'fa1 < 0.1'"),
    ],
)
def test_gate_file_that_cannot_decide_is_refused(
    tmp_path: Path, edit: Callable[[Document], object], message: str
) -> None:
    document = _default()
    edit(document)
    with pytest.raises(InputError, match=message) as caught:
        _load(document, tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("column", "bound", "message"),
    [
        ("retain.ta1.drop.estimate", {"max_value": 0.05}, "decided on a confidence bound, upper95"),
        ("retain.ta1.drop.lower95", {"max_value": 0.05}, "decided on a confidence bound, upper95"),
        ("retain.ta1.after.upper95", {"min_value": 0.5}, "decided on a confidence bound, lower95"),
        ("retain.ta1.after.lower95", {"min_value": 0.0}, "can never fail"),
        ("retain.ta1.after.lower95", {"min_value": 1.1}, "can never pass"),
    ],
)
def test_utility_gate_on_a_point_value_or_the_lenient_side_is_refused(
    tmp_path: Path, column: str, bound: dict[str, float], message: str
) -> None:
    document, side = _default(), "max" if "max_value" in bound else "min"
    document["expectations"][2] = {
        "type": f"expect_column_{side}_to_be_between",
        "kwargs": {"column": column, **bound},
        "meta": {"kind": "utility"},
    }
    with pytest.raises(InputError, match=message):
        _load(document, tmp_path)


@pytest.mark.parametrize(("column", "least"), [("forget.fa1.after.n", 0), ("forget.fa1.after.estimate", 0.1)])
def test_idle_evidence_gate_is_refused(tmp_path: Path, column: str, least: float) -> None:
    document = _default()
    document["expectations"][-1]["kwargs"] = {"column": column, "min_value": least}
    with pytest.raises(InputError, match=r"can never fail|asks for a least"):
        _load(document, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: [", "not YAML at line"),
        ("- a\n- b\n", "must be a mapping"),
        ("name: a\nname: b\nexpectations: []\n", "not YAML at line 2"),  # PyYAML would keep the last
    ],
)
def test_malformed_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_suite(path)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_suite(tmp_path / "none.yaml")
