"""What the report says of layer scores and steps is what the request's method means by them."""

from dataclasses import replace

import pytest

from report.html import render
from report.record import RunRecord
from report.score_words import score_words


@pytest.mark.parametrize(
    ("method", "gradient"), [("slug", True), ("uce", False), ("erase-linear", False), ("per-tower", False)]
)
def test_a_gradient_is_named_only_where_there_is_one(
    records: dict[str, RunRecord], method: str, gradient: bool
) -> None:
    record = records["passed"]
    plan = replace(record.plan, method=replace(record.plan.method, name=method))
    page = render(replace(record, plan=plan))
    assert ("along the forget gradient" in page) == gradient
    assert ("‖g forget‖" in page) == gradient
    assert score_words(method).step.split(":")[0] in page


def test_a_method_without_words_of_its_own_gets_neutral_ones() -> None:
    assert "as the method defines them" in score_words("something new").caption


def test_training_is_no_searched_step(records: dict[str, RunRecord]) -> None:
    record = records["passed"]
    plan = replace(record.plan, method=replace(record.plan.method, name="scrub"))
    many = tuple(replace(record.edits[0], layer=f"layer.{i}.weight") for i in range(20))
    unscored = dict.fromkeys(record.profile, ())
    page = render(replace(record, plan=plan, profile=unscored, edits=many))
    assert "smallest step" not in page
    assert "learning rate times the optimiser steps" in page
    assert "the method scores none" in page
    assert "Filled points were searched" not in page
    assert "20 changed tensors" in page
    assert "and 15 more" in page
    assert "smallest step" in render(record)
    assert "1 changed tensor<" in render(replace(record, edits=many[:1]))


def test_of_anchors_the_best_is_told_and_no_searched_step(records: dict[str, RunRecord]) -> None:
    record = records["passed"]
    plan = replace(record.plan, method=replace(record.plan.method, name="uce-cross-attention"))
    page = render(replace(record, plan=plan, profile=dict.fromkeys(record.profile, ())))
    assert "smallest step" not in page
    assert "of the anchors that reached it" in page
    assert "of the learning rates" not in page
