"""The offline verifier.

    report = verify(Path("certificate.json"), model_folder=Path("model"), expected_sha256="...")
    report.ok

It believes nothing that it can derive: bounds are recomputed from counts, gates from figures, the
decision from gates, digests from bytes.  What it cannot derive (the bootstrap bounds of drops, which
items were counted, whether the run took place) it can only bind to `expected_sha256`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from contracts.canonical import file_sha256
from contracts.errors import EvidenceError, SluglineError
from evidence.checks import Check, check_text
from evidence.manifest import check_manifest
from evidence.schema import WEIGHTS_NAME, Predicate, read_statement
from evidence.strict_json import parse

UNSIGNED = "unsigned: integrity only against the given digest"


@dataclass(frozen=True)
class VerifyReport:
    """What was asked of a certificate, in order; `weights_sha256` and `decision` are what it states."""

    checks: tuple[Check, ...]
    weights_sha256: str | None
    decision: str | None

    @property
    def ok(self) -> bool:
        """No check failed, and the certificate was held against actual weights.

        It says that the certificate is sound, not that the verdict is "passed": see `decision`.
        """
        results = {check.name: check.result for check in self.checks}
        return "failed" not in results.values() and results.get("weights") == "passed"


def verify(
    certificate: Path,
    *,
    weights: Path | None = None,
    model_folder: Path | None = None,
    expected_sha256: str | None = None,
) -> VerifyReport:
    """Check a certificate against itself, the weights, and the digest it was registered under.

    Args:
        certificate: the certificate file.
        weights: the weights file that it is said to be about.
        model_folder: the whole model folder; its manifest is checked, and its weights if `weights`
            is not given.
        expected_sha256: sha256 of the certificate file, from a place the certificate's writer
            cannot change.

    Returns:
        A report; a certificate that contradicts anything gives failed checks, not an exception.

    Raises:
        EvidenceError: the certificate file cannot be read.
    """
    try:
        content = certificate.read_bytes()
    except OSError as error:
        raise EvidenceError(f"certificate {certificate} cannot be read: {error.strerror}") from None
    checks = [_authenticity(content, expected_sha256)]
    try:
        statement = parse(content)
        predicate = read_statement(statement)
    except (ValueError, EvidenceError) as error:
        return VerifyReport((*checks, Check("format", "failed", str(error))), None, None)
    checks.append(Check("format", "passed", "every field is known and of its type"))
    checks += check_text(statement, predicate)
    checks.append(_weights(predicate, weights, model_folder))
    checks.append(_manifest(predicate, model_folder))
    return VerifyReport(tuple(checks), predicate.candidate.weights_sha256, predicate.verdict.decision)


def _authenticity(content: bytes, expected_sha256: str | None) -> Check:
    if expected_sha256 is None:
        return Check("authenticity", "not checked", f"{UNSIGNED}, and none was given")
    found = hashlib.sha256(content).hexdigest()
    if found != expected_sha256:
        return Check("authenticity", "failed", f"the file has sha256 {found}, expected {expected_sha256}")
    return Check("authenticity", "passed", f"{UNSIGNED} {expected_sha256}")


def _weights(predicate: Predicate, weights: Path | None, model_folder: Path | None) -> Check:
    if weights is None and model_folder is None:
        return Check("weights", "not checked", "no weights were given")
    path = weights or Path(model_folder or "", WEIGHTS_NAME)
    if not path.is_file():
        return Check("weights", "failed", "there is no such weights file")
    found, promised = file_sha256(path), predicate.candidate.weights_sha256
    if found != promised:
        return Check("weights", "failed", f"the weights have sha256 {found}, certified are {promised}")
    return Check("weights", "passed", f"the weights have the certified sha256 {promised}")


def _manifest(predicate: Predicate, model_folder: Path | None) -> Check:
    if model_folder is None:
        return Check("manifest", "not checked", "no model folder was given")
    try:
        manifest = check_manifest(model_folder)
    except SluglineError as error:
        return Check("manifest", "failed", str(error))
    if manifest.sha256 != predicate.candidate.manifest_sha256:
        return Check("manifest", "failed", f"the folder's manifest has sha256 {manifest.sha256}")
    if manifest.files.get(WEIGHTS_NAME) != predicate.candidate.weights_sha256:
        return Check("manifest", "failed", "the manifest names other weights")
    return Check("manifest", "passed", "every file of the folder is the one the manifest promises")
