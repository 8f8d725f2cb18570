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
