"""The verifier: what it accepts, and that no field that matters can be changed."""

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import contracts
import evidence
from contracts.canonical import digest, file_sha256
from contracts.errors import EvidenceError
from evidence.checks import statement_digest
from evidence.manifest import write_manifest
from evidence.verify import VerifyReport, verify

# What a forger who also recomputes the certificate's own sha256 could change unseen (and whoever redoes
# plan_sha256 too, most of the plan).  Only `expected_sha256` protects these, as UNSIGNED says.
NOT_DERIVABLE = {
    r"base\.manifest_sha256": "the base model's folder is not at hand",
    r"edits\[0\]\.(step_size|relative_change)": "takes the base weights and the forget set",
    r"reached_target": "takes the search trace, which stays in the run folder",
    r"measurements\.drops\.(neighbours|cross)\.ta5\.(lower|upper)95": (
        "bootstrap bound of a drop that no gate asks about: takes the item-level outcomes"
    ),
    r"measurements\.drops\.(retain\.ta[15]|cross\.ta1|neighbour\..*)\.lower95": "same, the ungated side",
    r"measurements\.drops\.neighbour\.c-0000000b\.ta1\.upper95": "same, unless it is the widest neighbour's",
    r"verdict\.suite": "the gate file's name; its digest is checked",
    r"verdict\.gates\[\d+\]\.note": "a remark",
    r"(started|finished)_at": "nobody else saw the run",
}


def _failed(report: VerifyReport) -> set[str]:
    return {check.name for check in report.checks if check.result == "failed"}


def _write(statement: Any, path: Path) -> Path:
    path.write_text(json.dumps(statement))
    return path


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _leaves(part, (*path, i))
    else:
        yield path


def _dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")


def _other(value: Any) -> Any:
    """Another value of the same type, as close to the first as possible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 0.001
    if value is None:
        return 0.5
    if re.match(r"\d{4}-\d\d-\d\dT", value):
        return value.replace(":00+", ":01+")
    return value[:-1] + ("0" if value[-1:] != "0" else "1")


def _mutants(statement: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _leaves(statement):
        mutant = copy.deepcopy(statement)
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = _other(parent[path[-1]])
        yield _dotted(path), mutant


def test_untouched_certificate_verifies(certificate_path: Path, model_folder: Path) -> None:
    report = verify(
        certificate_path, model_folder=model_folder, expected_sha256=file_sha256(certificate_path)
    )
    assert report.ok
    assert {check.result for check in report.checks} == {"passed"}
    assert report.weights_sha256 == file_sha256(model_folder / "weights.safetensors")
    assert report.decision == "passed"


def test_without_a_digest_it_says_that_nothing_is_signed(certificate_path: Path, model_folder: Path) -> None:
    report = verify(certificate_path, model_folder=model_folder)
    assert report.ok
    (check,) = [c for c in report.checks if c.name == "authenticity"]
    assert check.result == "not checked"
    assert check.explanation.startswith("unsigned: integrity only against the given digest")


def test_without_weights_nothing_is_certified(certificate_path: Path) -> None:
    report = verify(certificate_path, expected_sha256=file_sha256(certificate_path))
    assert _failed(report) == set()
    assert not report.ok


def test_weights_file_alone_is_enough(certificate_path: Path, model_folder: Path) -> None:
    assert verify(certificate_path, weights=model_folder / "weights.safetensors").ok


def test_other_weights_fail(certificate_path: Path, model_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    assert _failed(verify(certificate_path, weights=other)) == {"weights"}
    assert _failed(verify(certificate_path, weights=tmp_path / "none")) == {"weights"}
    (model_folder / "weights.safetensors").write_bytes(b"other weights")
    assert _failed(verify(certificate_path, model_folder=model_folder)) == {"weights", "manifest"}


def test_other_configuration_beside_the_right_weights_fails(
    certificate_path: Path, model_folder: Path
) -> None:
    (model_folder / "config.json").write_text('{"mean": 0}')
    write_manifest(model_folder)
    assert _failed(verify(certificate_path, model_folder=model_folder)) == {"manifest"}


def test_changing_any_leaf_breaks_the_certificate(
    statement: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    """Catches: a field that no digest covers."""
    survivors = [
        path
        for path, mutant in _mutants(statement)
        if verify(_write(mutant, tmp_path / "mutant.json"), model_folder=model_folder).ok
    ]
    assert survivors == []


def test_forger_who_redoes_the_digest_is_caught_by_the_figures(
    statement: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    """Every leaf but those of NOT_DERIVABLE contradicts another one; catches a check that checks nothing."""
    survivors = set()
    for path, mutant in _mutants(statement):
        mutant["sha256"] = statement_digest(mutant)
        report = verify(_write(mutant, tmp_path / "mutant.json"), model_folder=model_folder)
        if report.ok and path != "sha256":
            survivors.add(path.removeprefix("predicate."))
    unexplained = {p for p in survivors if not any(re.fullmatch(known, p) for known in NOT_DERIVABLE)}
    assert unexplained == set()
    idle = {known for known in NOT_DERIVABLE if not any(re.fullmatch(known, p) for p in survivors)}
    assert idle == set()


def test_forger_who_redoes_every_digest_is_caught_by_the_expected_one(
    statement: dict[str, Any], certificate_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    """Whoever swaps a part of the plan and redoes both digests leaves no contradiction inside the text."""
    registered = file_sha256(certificate_path)
    for name, mutant in _mutants(statement):
        if not name.startswith("predicate.plan."):
            continue
        mutant["predicate"]["plan_sha256"] = digest(mutant["predicate"]["plan"])
        mutant["sha256"] = statement_digest(mutant)
        path = _write(mutant, tmp_path / "mutant.json")
        report = verify(path, model_folder=model_folder, expected_sha256=registered)
        assert "authenticity" in _failed(report)


def _forged(statement: dict[str, Any], **gate: object) -> dict[str, Any]:
    forged = copy.deepcopy(statement)
    forged["predicate"]["verdict"]["gates"][0].update(gate)
    forged["sha256"] = statement_digest(forged)
    return forged


def test_bound_that_nothing_could_miss_fails(statement: dict[str, Any], tmp_path: Path) -> None:
    forged = _forged(statement, maximum=1.0, gate="forget.fa1.after.upper95 <= 1")
    assert {"decision", "self-checks"} <= _failed(verify(_write(forged, tmp_path / "c.json")))


def test_bound_below_the_figure_with_a_pass_fails(statement: dict[str, Any], tmp_path: Path) -> None:
    forged = _forged(statement, maximum=0.01, gate="forget.fa1.after.upper95 <= 0.01")
    assert "gates" in _failed(verify(_write(forged, tmp_path / "c.json")))


def test_bound_computed_for_more_items_than_counted_fails(statement: dict[str, Any], tmp_path: Path) -> None:
    """0 of 60 passed off with the bound of 0 of 299."""
    forged = _forged(statement, observed=0.00997)
    forged["predicate"]["measurements"]["rates"]["forget.fa1.after"]["upper95"] = 0.00997
    forged["sha256"] = statement_digest(forged)
    report = verify(_write(forged, tmp_path / "c.json"))
    (rates,) = [check for check in report.checks if check.name == "rates"]
    assert "forget.fa1.after: upper95 0.00997 should be 0.048703" in rates.explanation


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '"text"', "NaN", '{"sha256": 1, "sha256": 2}', '{"predicate": ' * 5000],
)
def test_malformed_certificate_is_a_failed_check_not_a_crash(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    report = verify(path)
    assert _failed(report) == {"format"}
    assert not report.ok


@pytest.mark.parametrize(
    ("part", "value"),
    [("predicate", None), ("predicate", {}), ("subject", []), ("_type", 1), ("sha256", None)],
)
def test_statement_of_the_wrong_shape_fails(
    statement: dict[str, Any], tmp_path: Path, part: str, value: object
) -> None:
    report = verify(_write({**statement, part: value}, tmp_path / "c.json"))
    assert not report.ok
    assert _failed(report)


def test_unknown_field_fails(statement: dict[str, Any], tmp_path: Path) -> None:
    """Catches: room for a name or caption beside the known fields."""
    statement["predicate"]["subject_name"] = "x"
    statement["sha256"] = statement_digest(statement)
    assert _failed(verify(_write(statement, tmp_path / "c.json"))) == {"format"}


def test_absent_certificate_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="cannot be read"):
        verify(tmp_path / "none.json")


def test_verifier_runs_alone_in_an_empty_folder(
    certificate_path: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The two folders and a bare interpreter: -I no environment or user paths, -S no site-packages."""
    alone = tmp_path / "alone"
    for package in (contracts, evidence):
        source = Path(package.__file__).parent
        shutil.copytree(source, alone / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    script = (
        f"import sys; sys.path.insert(0, {str(alone)!r})\n"
        "from pathlib import Path\n"
        "from evidence import certificate, manifest, verify\n"
        f"report = verify.verify(Path({str(certificate_path)!r}), model_folder=Path({str(model_folder)!r}))\n"
        "foreign = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(report.ok, sorted(foreign))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=alone, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "True ['__main__', 'contracts', 'evidence']"
