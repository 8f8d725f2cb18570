"""One real run's evidence: a model folder, measured and gated by the gates room, and its certificate."""

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from contracts.canonical import file_sha256
from contracts.values import (
    ROLES,
    Candidate,
    Edit,
    Measurements,
    Method,
    ModelHandle,
    Plan,
    SetRef,
    Verdict,
)
from evidence import certificate
from evidence.manifest import write_manifest
from gates.metrics import measure
from gates.runner import run_suite
from gates.suite import DEFAULT_SUITE, load_suite

TARGET, NEIGHBOURS = "c-000000f0", ("c-0000000a", "c-0000000b")


def _rows(group: str, concept: str, ranks: list[tuple[int, int]]) -> list[dict[str, object]]:
    return [
        {
            "item": f"i-{group}{concept}{i}",
            "cluster": f"d-{concept}{i // 5}",
            "group": group,
            "concept": concept,
            "question": "i2t",
            "state": state,
            "rank": rank,
        }
        for i, pair in enumerate(ranks)
        for state, rank in zip(("before", "after"), pair, strict=True)
    ]


PASSING: dict[str, list[tuple[int, int]]] = {
    "forget": [(1, 40)] * 50 + [(2, 9)] * 9 + [(1, 4)],
    "retain": [(1, 1)] * 600 + [(3, 3)] * 99 + [(1, 2)],
    "neighbour": [(1, 1)] * 199 + [(1, 2)],
    "control": [(40, 40)] * 60,
    "cross": [(1, 1)] * 700,
}


@pytest.fixture(scope="session")
def run() -> Callable[..., tuple[Measurements, Verdict]]:
    """Measure and gate a run that passes, but for the groups given as (rank before, rank after)."""

    def measure_and_gate(**groups: list[tuple[int, int]]) -> tuple[Measurements, Verdict]:
        ranks = PASSING | groups
        half = len(ranks["neighbour"]) // 2
        table = [
            *_rows("forget", TARGET, ranks["forget"]),
            *_rows("retain", "c-00000001", ranks["retain"]),
            *_rows("neighbour", NEIGHBOURS[0], ranks["neighbour"][half:]),
            *_rows("neighbour", NEIGHBOURS[1], ranks["neighbour"][:half]),
            *_rows("control", "c-00000c00", ranks["control"]),
            *_rows("cross", "s-00000001", ranks["cross"]),
        ]
        measurements = measure(pd.DataFrame(table), seed=0)
        return measurements, run_suite(load_suite(DEFAULT_SUITE), measurements).verdict

    return measure_and_gate


@pytest.fixture(scope="session")
def passing(run: Callable[..., tuple[Measurements, Verdict]]) -> tuple[Measurements, Verdict]:
    return run()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"edited weights")
    (folder / "config.json").write_text("{}")
    write_manifest(folder)
    return folder


@pytest.fixture
def parts(model_folder: Path, passing: tuple[Measurements, Verdict]) -> dict[str, Any]:
    """The arguments of `certificate.build`."""
    measurements, verdict = passing
    plan = Plan(
        request_id="r-5f0c",
        model="emoji-clip",
        base_version="1",
        base_weights_sha256="b" * 64,
        axis="object",
        targets=(TARGET,),
        neighbours=NEIGHBOURS,
        sets=tuple(
            SetRef(role, f"data/{role}", "a1b2c3d", f"{i:032x}.dir", f"{i:064x}", 60, False)
            for i, role in enumerate(ROLES)
        ),
        labels_sha256="d" * 64,
        method=Method(),
        gates_sha256=verdict.suite_sha256,
        seed=0,
        threads=1,
        device="cpu",
        software={"torch": "2.14.0", "python": "3.11.7"},
    )
    weights = file_sha256(model_folder / "weights.safetensors")
    return {
        "plan": plan,
        "base": ModelHandle("emoji-clip", "1", "clip", "pulled", "b" * 64, "c" * 64),
        "candidate": Candidate(
            folder="candidate",
            weights_sha256=weights,
            edits=(Edit("visual.proj", "vision", 0.25, (TARGET,), 0.01),),
            reached_target=True,
            trials=(),
            curve=(),
        ),
        "candidate_manifest_sha256": file_sha256(model_folder / "MANIFEST.json"),
        "measurements": measurements,
        "verdict": verdict,
        "started_at": datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
        "finished_at": datetime(2026, 11, 21, 10, 2, tzinfo=UTC),
    }


@pytest.fixture
def statement(parts: dict[str, Any]) -> dict[str, Any]:
    return certificate.build(**parts)


@pytest.fixture
def certificate_path(statement: dict[str, Any], tmp_path: Path) -> Path:
    certificate.write(statement, tmp_path / "certificate.json")
    return tmp_path / "certificate.json"


@pytest.fixture
def replanned(parts: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """The build arguments with some fields of the plan replaced."""

    def change(**fields: object) -> dict[str, Any]:
        return {**parts, "plan": dataclasses.replace(parts["plan"], **fields)}

    return change
