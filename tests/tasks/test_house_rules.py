"""slugline.yaml: what it says of a model, and one sentence for whatever is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.errors import InputError
from contracts.values import Method
from tasks.house import choose, repository, rules

RULES: dict[str, Any] = {
    **{name: f"data/{name}" for name in ("retain", "search", "holdout", "control", "labels")},
    "gates": "gates.yaml",
    "method": {"search_steps": 4},
}


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    (tmp_path / "slugline.yaml").write_text(yaml.safe_dump({"models": {"clip": {"object": RULES}}}))
    return tmp_path


def test_rules_are_read_per_model_and_axis(repo: Path) -> None:
    house = rules(repo, "clip", "object")

    assert (house.holdout, house.neighbours, house.method) == ("data/holdout", None, {"search_steps": 4})


@pytest.mark.parametrize(
    ("model", "axis", "said"),
    [
        ("vit", "object", "no rules for model 'vit'; it knows clip"),
        ("clip", "style", "no rules for axis 'style'"),
    ],
)
def test_an_unknown_model_or_axis_is_named(repo: Path, model: str, axis: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rules(repo, model, axis)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {clip: {object: {retian: x}}}", "'clip', axis 'object'.*unknown field 'retian'"),
        ("models: {clip: {object: [1]}}", "expected an object"),
        ("models: {clip: }", "no rules for axis"),
        ("models: ", "knows none"),
        ("models: [clip]", "no rules for model 'clip'"),
        ("other: 1", "has no `models`"),
        ("{", "not readable"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "slugline.yaml").write_text(text)

    with pytest.raises(InputError, match=said):
        rules(tmp_path, "clip", "object")


def test_a_request_overrides_single_options_of_the_house(repo: Path) -> None:
    house = rules(repo, "clip", "object")

    assert choose(house, {}).method == Method(search_steps=4)
    choice = choose(house, {"method": {"forget_at": 1}, "gates": "mine.yaml", "seed": 3})
    assert (choice.method, choice.gates, choice.seed) == (Method(search_steps=4, forget_at=1), "mine.yaml", 3)


def test_another_method_is_not_told_what_only_the_house_method_knows(tmp_path: Path) -> None:
    method = {"name": "erase-linear", "options": {"shrinkage": 0.5}, "forget_at": 3}
    house = {"models": {"clip": {"object": {**RULES, "method": method}}}}
    (tmp_path / "slugline.yaml").write_text(yaml.safe_dump(house))
    told = rules(tmp_path, "clip", "object")

    assert choose(told, {"method": {"name": "slug"}}).method == Method(name="slug", forget_at=3)
    assert choose(told, {"method": {"name": "erase-linear"}}).method.options == {"shrinkage": 0.5}
    assert choose(told, {"method": {"forget_at": 1}}).method.options == {"shrinkage": 0.5}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"methd": {}}, "unknown field 'methd'"),
        ({"method": {"steps": 1}}, "unknown field 'steps'"),
        ({"method": "slug"}, "expected an object"),
        ({"method": {"towers": ["audio"]}}, "expected one of vision, text"),
        ({"seed": "x"}, "expected int"),
        ({"gates": 1}, "expected str"),
    ],
)
def test_an_option_that_no_run_could_use_is_refused(repo: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose(rules(repo, "clip", "object"), options)


def test_the_repository_is_found_from_below_or_by_its_variable(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "deep" / "er").mkdir(parents=True)
    monkeypatch.delenv("SLUGLINE_REPO", raising=False)
    monkeypatch.chdir(repo / "deep" / "er")
    assert repository() == repo

    monkeypatch.setenv("SLUGLINE_REPO", str(repo / "deep"))  # what is named is not searched above
    with pytest.raises(InputError, match=r"no slugline\.yaml"):
        repository()
