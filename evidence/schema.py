"""The shape of a certificate: which fields it has and what each may hold.

    {"_type": ..., "subject": [{"name": "weights.safetensors", "digest": {"sha256": ...}}],
     "predicateType": "slugline/erasure-certificate/v1", "predicate": {...}, "sha256": ...}

An in-toto Statement v1, so that its tools can sign and carry it, plus `sha256`, the digest of the
canonical JSON of all the rest.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from contracts.canonical import from_plain
from contracts.errors import EvidenceError, InputError
from contracts.metrics import HITS, LEVELS
from contracts.values import Edit, Measurements, Plan, Verdict

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "slugline/erasure-certificate/v1"
WEIGHTS_NAME = "weights.safetensors"

_KEYS = {"_type", "subject", "predicateType", "predicate", "sha256"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CONCEPT = re.compile(r"[cs]-[0-9a-f]{8}")
_OWN_WORDS = "|".join((*HITS, *LEVELS))
_METRIC = re.compile(
    r"((forget|control|earlier)\.(fa|t2i)[15]|(retain|neighbours|cross)\.(ta|t2i)[15]"
    rf"|(forget|control|earlier|retain|neighbours|cross)\.({_OWN_WORDS})"
    rf"|(neighbours\.worst|neighbour\.[cs]-[0-9a-f]{{8}})\.(ta1|{_OWN_WORDS}))(\.before|\.after)?"
)
_TOKEN = re.compile(r"[A-Za-z0-9_.:+/@-]{0,200}")
_SENTENCE = re.compile(r"[A-Za-z0-9_.:+/@<>=,;() -]{0,200}")


@dataclass(frozen=True)
class ModelDigests:
    """Which bytes: the weights file, and the manifest that stands for the whole model folder."""

    weights_sha256: str
    manifest_sha256: str


@dataclass(frozen=True)
class Claim:
    """In words: what the figures show, and what they do not."""

    shown: str
    not_proved: tuple[str, ...]


@dataclass(frozen=True)
class Predicate:
    """Everything that decided one verdict, as counts, digests and opaque ids.

    Times are ISO 8601 in UTC; software versions stand in `plan.software`.
    """

    plan: Plan
    plan_sha256: str
    base: ModelDigests
    candidate: ModelDigests
    edits: tuple[Edit, ...]
    reached_target: bool
    measurements: Measurements
    verdict: Verdict
    claim: Claim
    started_at: str
    finished_at: str


def subject(weights_sha256: str) -> list[dict[str, Any]]:
    """The in-toto subject: the candidate's weights file."""
    return [{"name": WEIGHTS_NAME, "digest": {"sha256": weights_sha256}}]


def read_statement(statement: Any) -> Predicate:
    """The typed predicate of a parsed certificate.

    Raises:
        EvidenceError: a key is unknown or missing, a value has the wrong type, or a text stands
            where an id, digest or metric name belongs.  The message names the field, not the text.
    """
    if not isinstance(statement, dict) or set(statement) != _KEYS:
        raise EvidenceError(f"a certificate holds exactly {', '.join(sorted(_KEYS))}")
    for key, wanted in (("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)):
        if statement[key] != wanted:
            raise EvidenceError(f"{key} must be {wanted!r}")
    try:
        predicate = from_plain(Predicate, statement["predicate"])
    except InputError as error:
        raise EvidenceError(str(error)) from None
    refuse_free_text(statement["predicate"])
    if statement["subject"] != subject(predicate.candidate.weights_sha256):
        raise EvidenceError("the subject is not the candidate's weights file")
    return predicate


def refuse_free_text(predicate: Mapping[str, Any]) -> None:
    """Refuse a predicate that holds text where an id, digest, version or metric name belongs.

    A regular expression cannot know a name when it sees one; this stops captions, labels of several
    words and readable concepts.  What is left to the writer: a one-word request id, set path or
    model name.

    Raises:
        EvidenceError: naming the field, never its value.
    """
    for path, text in _strings(predicate):
        if not _pattern(path).fullmatch(text):
            raise EvidenceError(f"certificate field {path} may not hold such a text")
    for name in predicate["plan"].get("promised", ()):
        if not _METRIC.fullmatch(name.removesuffix(".upper95")):
            raise EvidenceError("plan.promised holds an unknown metric")
    for part in ("rates", "drops", "levels"):
        for name in predicate["measurements"].get(part, ()):
            if not _METRIC.fullmatch(name):
                raise EvidenceError(f"measurements.{part} holds an unknown metric")


def _pattern(path: str) -> re.Pattern[str]:
    field = re.sub(r"\[\d+\]", "", path)
    if field.startswith("claim."):  # derived from the figures, and derived again by the verifier
        return re.compile(r".*", re.DOTALL)
    if field.rpartition(".")[2].endswith("_sha256"):
        return _SHA256
    if field in ("plan.targets", "plan.erased_before", "plan.neighbours", "edits.concepts"):
        return _CONCEPT
    if field.startswith(("verdict.", "plan.software.")):
        return _SENTENCE
    return _TOKEN


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of every string leaf."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _strings(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from _strings(part, f"{path}[{i}]")
