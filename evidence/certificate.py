"""Writing the certificate of one run.

    statement = build(plan=..., base=..., candidate=..., ...)
    sha256 = write(statement, path)      # the registry stores it as a tag of the version

The certificate is not signed: anybody can write one that agrees with itself.  What binds it is the
sha256 of the file, kept where only the pipeline writes, and handed to `verify` as `expected_sha256`.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contracts.canonical import file_sha256, to_plain
from contracts.errors import EvidenceError
from contracts.values import Candidate, Measurements, ModelHandle, Plan, Verdict
from contracts.whole_files import write_private
from evidence.checks import check_text, statement_digest
from evidence.claim import claim_of
from evidence.schema import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    ModelDigests,
    Predicate,
    read_statement,
    subject,
)


def build(
    *,
    plan: Plan,
    base: ModelHandle,
    candidate: Candidate,
    candidate_manifest_sha256: str,
    measurements: Measurements,
    verdict: Verdict,
    started_at: datetime,
    finished_at: datetime,
) -> dict[str, Any]:
    """The statement of one run, whatever its verdict.

    Args:
        plan: what was to be done; stored whole.
        base: the model that was pulled.
        candidate: the edited model; its search trace is left out.
        candidate_manifest_sha256: sha256 of the candidate's MANIFEST.json.
        measurements: all figures; NaN and infinity cannot be stored.
        verdict: the gates' decision, with every bound.
        started_at: start of the run, with a time zone.
        finished_at: end of the run, with a time zone.

    Raises:
        EvidenceError: the parts contradict each other or hold a text that is no id, digest or
            figure; the message names the check or field.
    """
    predicate = Predicate(
        plan=plan,
        plan_sha256=plan.sha256,
        base=ModelDigests(base.weights_sha256, base.manifest_sha256),
        candidate=ModelDigests(candidate.weights_sha256, candidate_manifest_sha256),
        edits=candidate.edits,
        reached_target=candidate.reached_target,
        measurements=measurements,
        verdict=verdict,
        claim=claim_of(plan, candidate.edits, measurements, verdict),
        started_at=started_at.astimezone(UTC).isoformat(timespec="seconds"),
        finished_at=finished_at.astimezone(UTC).isoformat(timespec="seconds"),
    )
    statement: dict[str, Any] = {
        "_type": STATEMENT_TYPE,
        "subject": subject(candidate.weights_sha256),
        "predicateType": PREDICATE_TYPE,
        "predicate": to_plain(predicate),
    }
    try:
        statement["sha256"] = statement_digest(statement)
    except ValueError:
        raise EvidenceError("a figure of the certificate is NaN or infinite") from None
    for check in check_text(statement, read_statement(statement)):
        if check.result == "failed":
            raise EvidenceError(f"no certificate can be written, check {check.name!r}: {check.explanation}")
    return statement


def write(statement: Mapping[str, Any], path: Path) -> str:
    """Write a certificate whole or not at all, readable by its owner only; return the file's sha256."""
    text = json.dumps(statement, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_private(path, text.encode())
    return file_sha256(path)
