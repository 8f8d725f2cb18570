"""What may stand in a certificate, and how it reaches the disk."""

import dataclasses
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.canonical import file_sha256
from contracts.errors import EvidenceError
from contracts.values import Edit, GateOutcome, Measurements, Verdict
from evidence import certificate

Replanned = Callable[..., dict[str, Any]]


def test_certificate_is_an_in_toto_statement_about_the_weights(
    statement: dict[str, Any], model_folder: Path
) -> None:
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "slugline/erasure-certificate/v1"
    digest = file_sha256(model_folder / "weights.safetensors")
    assert statement["subject"] == [{"name": "weights.safetensors", "digest": {"sha256": digest}}]


def test_same_run_gives_the_same_bytes(parts: dict[str, Any], tmp_path: Path) -> None:
    first = certificate.write(certificate.build(**parts), tmp_path / "1.json")
    assert certificate.write(certificate.build(**parts), tmp_path / "2.json") == first
    assert first == file_sha256(tmp_path / "1.json")


def test_claim_names_the_concept_items_bounds_and_limits(statement: dict[str, Any]) -> None:
    claim = statement["predicate"]["claim"]
    assert "c-000000f0" in claim["shown"]
    assert "0 of 60 items from 12 drawings, at most 4.87 % (bound asked for: 10.00 %)" in claim["shown"]
    assert "retain.ta1.drop.upper95 <= 0.05" in claim["shown"]
    limits = " ".join(claim["not_proved"])
    for word in ("influence", "visual.proj", "relearning", "drawings, hands", "copies"):
        assert word in limits


def test_run_that_did_not_pass_claims_nothing(
    parts: dict[str, Any], run: Callable[..., tuple[Measurements, Verdict]]
) -> None:
    parts["measurements"], parts["verdict"] = run(forget=[(1, 1)] * 60)
    claim = certificate.build(**parts)["predicate"]["claim"]
    assert claim["shown"] == "No erasure is claimed: the verdict is 'failed'."
    assert claim["not_proved"]


def test_file_is_private_and_whole_or_absent(
    statement: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "certificate.json"
    certificate.write(statement, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):  # noqa: PT011
        certificate.write({**statement, "sha256": "0"}, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["certificate.json"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("hot beverage",)}, r"plan\.targets\[0\]"),
        ({"targets": ("tea",)}, r"plan\.targets\[0\]"),
        ({"neighbours": ("c-0000000a", "coffee")}, r"plan\.neighbours\[1\]"),
        ({"request_id": "forget Jane Doe"}, r"plan\.request_id"),
        ({"model": "a photo of jane"}, r"plan\.model"),
        ({"labels_sha256": "unknown"}, r"plan\.labels_sha256"),
        ({"software": {"torch": "ünnamed"}}, r"plan\.software\.torch"),
    ],
)
def test_readable_text_is_refused_and_not_repeated(
    replanned: Replanned, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(EvidenceError, match=message) as caught:
        certificate.build(**replanned(**fields))
    for word in ("beverage", "tea", "coffee", "ane", "unknown", "ünnamed"):
        assert word not in str(caught.value).replace("measurements", "")


def test_metric_named_after_a_concept_is_refused(parts: dict[str, Any]) -> None:
    figures: Measurements = parts["measurements"]
    rates = {**figures.rates, "neighbour.tea.ta1.after": figures.rates["retain.ta1.after"]}
    parts["measurements"] = Measurements(rates, figures.drops)
    with pytest.raises(EvidenceError, match=r"measurements\.rates holds an unknown metric"):
        certificate.build(**parts)


def test_figure_that_is_not_finite_is_refused(parts: dict[str, Any]) -> None:
    (edit,) = parts["candidate"].edits
    bad = dataclasses.replace(edit, step_size=float("nan"))
    parts["candidate"] = dataclasses.replace(parts["candidate"], edits=(bad,))
    with pytest.raises(EvidenceError, match="NaN or infinite"):
        certificate.build(**parts)


@pytest.mark.parametrize(
    ("fields", "check"),
    [
        ({"base_weights_sha256": "e" * 64}, "lineage"),
        ({"gates_sha256": "e" * 64}, "lineage"),
        ({"targets": ("c-0000000d",)}, "lineage"),
        ({"neighbours": ("c-0000000a",)}, "neighbours"),
        ({"neighbours": ("c-0000000a", "c-0000000b", "c-0000000c")}, "neighbours"),
    ],
)
def test_parts_of_different_runs_make_no_certificate(
    replanned: Replanned, fields: dict[str, Any], check: str
) -> None:
    with pytest.raises(EvidenceError, match=f"check '{check}'"):
        certificate.build(**replanned(**fields))


@pytest.mark.parametrize("role", ["forget", "search", "holdout"])
def test_plan_without_a_deciding_set_makes_no_certificate(
    parts: dict[str, Any], replanned: Replanned, role: str
) -> None:
    sets = tuple(ref for ref in parts["plan"].sets if ref.role != role)
    with pytest.raises(EvidenceError, match=f"no {role} set"):
        certificate.build(**replanned(sets=sets))


def test_search_set_that_is_the_holdout_makes_no_certificate(
    parts: dict[str, Any], replanned: Replanned
) -> None:
    holdout = parts["plan"].set("holdout").items_sha256
    sets = tuple(
        dataclasses.replace(ref, items_sha256=holdout) if ref.role == "search" else ref
        for ref in parts["plan"].sets
    )
    with pytest.raises(EvidenceError, match="two roles share one set"):
        certificate.build(**replanned(sets=sets))


@pytest.mark.parametrize(
    "edits",
    [
        (),
        (Edit("visual.proj", "vision", 1.0, ("c-000000f0",), 0.1),) * 2,
        (Edit("visual.proj", "vision", 1.0, ("c-0000000d",), 0.1),),
    ],
    ids=["none", "twice", "foreign concept"],
)
def test_impossible_edits_make_no_certificate(parts: dict[str, Any], edits: tuple[Edit, ...]) -> None:
    parts["candidate"] = dataclasses.replace(parts["candidate"], edits=edits)
    with pytest.raises(EvidenceError, match="check 'lineage'"):
        certificate.build(**parts)


def test_unchanged_weights_make_no_certificate(parts: dict[str, Any]) -> None:
    parts["candidate"] = dataclasses.replace(parts["candidate"], weights_sha256="b" * 64)
    with pytest.raises(EvidenceError, match="candidate's weights are the base weights"):
        certificate.build(**parts)


def _drop_gate(verdict: Verdict, wanted: Callable[[GateOutcome], bool]) -> Verdict:
    return dataclasses.replace(verdict, gates=tuple(g for g in verdict.gates if not wanted(g)))


@pytest.mark.parametrize("prefix", ["original_must_fail", "control_must_pass"])
def test_verdict_without_its_self_checks_makes_no_certificate(parts: dict[str, Any], prefix: str) -> None:
    parts["verdict"] = _drop_gate(parts["verdict"], lambda g: g.gate.startswith(prefix))
    with pytest.raises(EvidenceError, match="check 'self-checks'"):
        certificate.build(**parts)


def test_verdict_without_utility_gates_makes_no_pass(parts: dict[str, Any]) -> None:
    parts["verdict"] = _drop_gate(parts["verdict"], lambda g: g.kind == "utility")
    with pytest.raises(EvidenceError, match="check 'decision'"):
        certificate.build(**parts)
