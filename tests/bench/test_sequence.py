"""Edits one after another are charged for edits alone, however long the measuring between them takes."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import sequence
from contracts.errors import ModelError
from contracts.values import Method
from tasks.house import Rules

EDIT, MEASURE = 2.0, 100.0


class Clock:
    """CPU seconds that pass where the work is said to be done."""

    def __init__(self) -> None:
        self.now = 0.0

    def takes(self, seconds: float, result: Any = None) -> Any:
        """Something that takes so long."""
        self.now += seconds
        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Edits take `EDIT` seconds, everything that measures `MEASURE`."""
    clock = Clock()
    monkeypatch.setattr(sequence, "process_time", lambda: clock.now)
    monkeypatch.setattr(sequence, "repository", Path)
    monkeypatch.setattr(sequence, "linked_sets", lambda *told: nullcontext(Path()))
    monkeypatch.setattr(sequence, "usable", lambda *told: {"c-1", "c-2", "c-3"})
    monkeypatch.setattr(sequence, "replace", lambda plan, **told: plan)
    monkeypatch.setattr(sequence, "unlearn_inputs", lambda *told: None)
    monkeypatch.setattr(sequence, "unlearn", lambda *told: clock.takes(EDIT))
    monkeypatch.setattr(
        sequence,
        "plan_for",
        lambda repo, house, axis, targets, *told: SimpleNamespace(
            targets=targets, seed=0, threads=1, method=Method()
        ),
    )
    held = lambda plan, *told: clock.takes(MEASURE, plan)  # noqa: E731
    monkeypatch.setattr(sequence, "Holdout", SimpleNamespace(read=held))

    def row(way: str, held: Any, model: Any, method: Any, seconds: float, error: str | None) -> Any:
        return clock.takes(MEASURE, (way, len(held.targets), seconds, error))

    monkeypatch.setattr(sequence, "_row", row)
    return clock


@pytest.fixture
def base() -> Any:
    house = Rules(*("",) * 6, method={})
    return SimpleNamespace(load=lambda: SimpleNamespace(image_size=8), houses=lambda repo: {"object": house})


@pytest.mark.usefixtures("clock")
def test_a_chain_is_charged_for_its_edits_alone(base: Any) -> None:
    assert list(sequence.sequence(base, [1, 3], 0, 1, {})) == [
        ("union", 1, EDIT, None),
        ("union", 3, EDIT, None),
        ("chain", 1, EDIT, None),
        ("chain", 3, 3 * EDIT, None),
    ]


def test_a_chain_that_breaks_ends_with_the_seconds_so_far(
    base: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = []

    def unlearn(*told: Any) -> None:
        clock.takes(EDIT)
        edits.append(told)
        if len(edits) == 3:  # the union is the first
            raise ModelError("no layer")

    monkeypatch.setattr(sequence, "unlearn", unlearn)
    *_, last = sequence.sequence(base, [3], 0, 1, {})
    assert last == ("chain", 2, 2 * EDIT, "ModelError: no layer")
