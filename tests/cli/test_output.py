"""A run's result, for people."""

from pathlib import Path
from typing import Any

import pytest

from cli.output import NAMED, print_run


def result(tensors: int) -> dict[str, Any]:
    """Of a run that changed so many tensors."""
    side = {"named_before": 0.9, "named_after": 0.0, "n": 48}
    return {
        "request": "req-0123456789abcdef",
        "verdict": "passed",
        "promoted": True,
        "version": "2",
        "edited": [{"layer": f"layer.{i}", "tower": "vision", "step_size": 0.5} for i in range(tensors)],
        "forget": {**side, "named_after_upper95": 0.06},
        "retain": {**side, "drop_upper95": 0.02},
        "levels": {},
        "report": str(Path("report.html")),
        "certificate": str(Path("certificate.json")),
    }


@pytest.mark.parametrize("tensors", [1, NAMED, NAMED + 1, 116])
def test_a_few_changed_tensors_are_named_and_the_others_counted(
    capsys: pytest.CaptureFixture[str], tensors: int
) -> None:
    print_run(result(tensors))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  edited")]
    assert line.count("layer.") == min(tensors, NAMED)
    assert (" more" in line) == (tensors > NAMED)
    if tensors > NAMED:
        assert line.endswith(f"and {tensors - NAMED} more")


def test_the_gates_that_were_missed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    gate = "neighbours.ta1.drop.upper95 <= 0.15"
    print_run({**result(1), "verdict": "failed", "promoted": False, "missed": [gate]})
    assert f"  missed  {gate}" in capsys.readouterr().out.splitlines()
    print_run(result(1))
    assert "missed" not in capsys.readouterr().out
