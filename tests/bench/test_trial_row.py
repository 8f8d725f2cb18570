"""One row, end to end in the tests' small world: the same figures as a run, and the base model untouched."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.audits import AUDITS
from bench.case import Case, Settings
from bench.contenders import Contender
from bench.gold import Gold
from bench.requests import Request, linked_sets
from bench.trial import trial
from contracts.errors import ModelError
from contracts.values import Method
from data.layout import concept_id
from tasks.families.clip_measure import measured
from tasks.house import choose, rules
from tests.world import COLOURS, FORGET, MODEL, SEEN, TARGET, World
from unlearning.families.clip import ClipModel
from unlearning.retain_statistics import RetainStatistics, measure

# Not the target's family, so that what is near it stays as it was.
OTHER = SEEN[-1]


@pytest.fixture(scope="module")
def case(world: World) -> Iterator[Case]:
    house = rules(world.root, MODEL, "object")
    base = ClipModel.load(world.model)
    some = Contender("slug", replace(choose(house, {}).method, towers=("text",)))
    request = Request("single", (concept_id(TARGET),))
    settings = Settings(relearn_steps=2, relearn_batch=8)
    with linked_sets(world.root, house, FORGET) as folder:
        # The world's own model stands in for one that has seen neither the target nor another concept.
        gold = Gold(world.model, frozenset((concept_id(TARGET), concept_id(OTHER))))
        yield Case.build(world.root, folder, house, ("tiny", base), request, some, gold, settings, 1)


@pytest.fixture
def work(world: World) -> ClipModel:
    return ClipModel.load(world.model)


def slug(case: Case, *towers: str) -> Contender:
    return Contender("slug", replace(case.plan.method, towers=towers))


def test_a_row_has_the_figures_of_a_run(case: Case, work: ClipModel, world: World) -> None:
    row = trial(case, slug(case, "text"), work, {})
    house = rules(world.root, MODEL, "object")
    with linked_sets(world.root, house, FORGET) as folder:
        # `work` still holds the candidate.
        told = measured(case.plan, folder, case.base.model, work, {"text"}).figures
    for name, rate in row["rates"].items():
        for state in ("before", "after"):
            assert rate[state]["hits"] == told.rates[f"{name}.{state}"].hits
    assert row["drops"]["retain.ta1"]["upper95"] == pytest.approx(told.drops["retain.ta1"].upper95, abs=1e-6)
    assert row["edited"] == {"towers": ["text"], "tensors": 1, "layers": row["edited"]["layers"]}
    assert row["rates"]["forget.fa1"]["after"]["hits"] < row["rates"]["forget.fa1"]["before"]["hits"]


def test_a_row_says_what_its_method_was_not_told(case: Case, work: ClipModel) -> None:
    assert case.plan.method.options == {}
    told = trial(case, slug(case, "text"), work, {})["method"]
    assert told["options"] == {"alignment": "absolute", "first_step": "weight"}


def test_what_is_known_of_the_retain_set_is_measured_once_and_changes_no_figure(
    case: Case, work: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def counted(*args: Any, **options: Any) -> RetainStatistics:
        measured.append(args)
        return measure(*args, **options)

    monkeypatch.setattr("bench.case.measure", counted)
    later = replace(case, retain_known=True, _statistics={})
    step = replace(case.plan.method, name="slug-preconditioned", towers=("text",))
    one = Contender("one", replace(step, options={"layers": 1}))
    for contender in (one, Contender("three", step)):
        known, anew = trial(later, contender, work, {}), trial(case, contender, work, {})
        assert known["edited"] == anew["edited"]
        assert known["rates"] == anew["rates"]
        assert (known["retain_known"], anew["retain_known"]) == (True, False)
    assert len(measured) == 1
    assert later.given(case.plan.method) is case.inputs  # SLUG's Pareto front asks for the request's own


def test_audits_leave_the_candidate_and_the_base_as_they_were(case: Case, work: ClipModel) -> None:
    before = {name: w.detach().clone() for name, w in case.base.model.parameters.items()}
    trial(case, slug(case, "vision"), work, {})
    bare = {name: w.detach().clone() for name, w in work.parameters.items()}
    row = trial(case, slug(case, "vision"), work, {name: {} for name in (*AUDITS, "distance")})
    assert set(row["audits"]) == {*AUDITS, "distance"}
    assert all(torch.equal(before[name], w) for name, w in case.base.model.parameters.items())
    assert all(torch.equal(bare[name], w) for name, w in work.parameters.items())
    assert not any(w.requires_grad for w in work.parameters.values())


def test_image_features_of_a_text_edit_are_those_of_the_base(case: Case, work: ClipModel) -> None:
    text, vision = (
        trial(case, slug(case, t), work, {"probe": {}})["audits"]["probe"] for t in ("text", "vision")
    )
    assert text["after"] == text["before"] == vision["before"]
    assert vision["after"] != vision["before"]


def test_the_retrained_model_is_a_row_without_a_method_and_at_no_distance_from_itself(
    case: Case, work: ClipModel
) -> None:
    row = trial(case, Contender("retrained", None), work, {"distance": {}})
    assert row["method"] is None
    assert row["drops"]["retain.ta1"]["estimate"] == 0.0
    assert row["audits"]["distance"]["after"]["kl"] == pytest.approx(0.0, abs=1e-6)
    edited = trial(case, slug(case, "text"), work, {"distance": {}})["audits"]["distance"]
    assert edited["after"]["kl"] > 1e-4
    retained = case.holdout.parts.retained
    others = retained["object"] == concept_id(OTHER)
    assert 0 < others.sum() < len(retained)
    assert edited["after"]["agreement"]["n"] == len(retained) - others.sum()


def test_what_a_union_has_not_seen_for_other_requests_does_not_count_against_it(
    case: Case, work: ClipModel
) -> None:
    assert case.retrained is not None
    union = trial(case, Contender("retrained", None), work, {})
    method = trial(case, slug(case, "text"), work, {})
    assert union["retrained"] == method["retrained"] == "union of 2 concepts"
    n = {row["label"]: row["rates"]["retain.ta1"]["before"]["n"] for row in (union, method)}
    assert n["retrained"] < n["slug"]
    assert union["rates"]["forget.fa1"]["before"] == method["rates"]["forget.fa1"]["before"]
    assert concept_id(OTHER) not in case.retrained.holdout.plan.neighbours


def test_an_error_is_a_row_and_the_next_row_is_as_if_nothing_had_been(
    case: Case, work: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trial(case, slug(case, "text"), work, {})

    def fail(error: Exception) -> dict[str, object]:
        def broken(model: ClipModel, *_: object) -> None:
            with torch.no_grad():
                model.parameters["text_projection"].zero_()
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("bench.trial.unlearn", broken)
            return trial(case, slug(case, "text"), work, {})["error"]

    assert fail(ModelError("no layer")) == {"class": "ModelError", "message": "no layer", "expected": True}
    assert fail(ValueError(TARGET)) == {"class": "ValueError", "message": "", "expected": False}
    again = trial(case, slug(case, "text"), work, {})
    assert again["rates"] == expected["rates"]


def test_a_row_names_no_concept(case: Case, work: ClipModel) -> None:
    text = json.dumps(trial(case, slug(case, "text"), work, {"probe": {}, "retrieval": {}}))
    assert concept_id(TARGET) in text
    assert not any(word in text for word in (*COLOURS, *SEEN, "tile"))


def test_methods_get_what_a_run_gives_them(case: Case) -> None:
    assert case.plan.neighbours[0] == concept_id("crimson cross")
    assert case.inputs.targets == (list(case.inputs.class_ids).index(concept_id(TARGET)),)
    assert isinstance(case.plan.method, Method)
