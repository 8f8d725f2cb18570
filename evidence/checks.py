"""The checks that need only the certificate's own text.

`certificate.build` runs them before anything is written and `verify` runs them again on what was read,
so a certificate that would not verify never exists.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from contracts.canonical import digest
from contracts.errors import EvidenceError
from evidence import recheck, recheck_plan
from evidence.claim import claim_of
from evidence.schema import Predicate


@dataclass(frozen=True)
class Check:
    """One question asked of a certificate; `explanation` says what was compared, or what is wrong."""

    name: str
    result: Literal["passed", "failed", "not checked"]
    explanation: str


def statement_digest(statement: Mapping[str, Any]) -> str:
    """sha256 over the canonical JSON of the statement without its own `sha256`."""
    return digest({key: value for key, value in statement.items() if key != "sha256"})


def check_text(statement: Mapping[str, Any], predicate: Predicate) -> list[Check]:
    """Every check on a well-formed statement (`schema.read_statement`) and its typed predicate."""
    plan, figures, verdict = predicate.plan, predicate.measurements, predicate.verdict
    return [
        _check("digest", "the statement has the sha256 it states", _digest_problems(statement)),
        _check("plan", "the plan has the sha256 that the run was tied to", _plan_problems(statement)),
        _check(
            "sets", "forget, search and holdout sets are pinned and distinct", recheck_plan.recheck_sets(plan)
        ),
        _check("lineage", "base, candidate and edits belong to the plan", _lineage_problems(predicate)),
        _check(
            "rates", "every estimate and exact bound follows from its counts", recheck.recheck_rates(figures)
        ),
        _check(
            "drops", "every drop is the difference of its rates within bounds", recheck.recheck_drops(figures)
        ),
        _check(
            "levels",
            "every loss is the difference of its levels within bounds",
            recheck.recheck_levels(figures),
        ),
        _check(
            "neighbours",
            "the planned neighbours, and no others, were measured",
            recheck_plan.recheck_neighbours(plan, figures, verdict),
        ),
        _check(
            "gates",
            "every gate is decided as its figure and bound say",
            recheck.recheck_gates(figures, verdict),
        ),
        _check(
            "earlier",
            "what the base version had forgotten was held to the promised bounds",
            recheck_plan.recheck_earlier(plan, verdict),
        ),
        _check(
            "self-checks",
            "every erasure gate was run on the original and on a control",
            recheck.recheck_self_checks(verdict),
        ),
        _check("decision", "the decision follows from the gates", recheck.recheck_decision(verdict)),
        _check("claim", "the claim says what the figures show", _claim_problems(predicate)),
        _check("times", "the run ended after it started", _time_problems(predicate)),
    ]


def _check(name: str, passed: str, problems: Iterable[str]) -> Check:
    found = list(problems)
    return Check(name, "failed", "; ".join(found)) if found else Check(name, "passed", passed)


def _digest_problems(statement: Mapping[str, Any]) -> list[str]:
    found = statement_digest(statement)
    return [] if statement["sha256"] == found else [f"the statement's sha256 is {found}"]


def _plan_problems(statement: Mapping[str, Any]) -> list[str]:
    # Over the JSON as read: decoding first would make 0 and 0.0 the same plan.
    predicate = statement["predicate"]
    found = digest(predicate["plan"])
    return [] if predicate["plan_sha256"] == found else [f"the plan's sha256 is {found}"]


def _lineage_problems(predicate: Predicate) -> list[str]:
    plan, edits = predicate.plan, predicate.edits
    problems = []
    if predicate.base.weights_sha256 != plan.base_weights_sha256:
        problems.append("the base weights are not those of the plan")
    if predicate.candidate.weights_sha256 == predicate.base.weights_sha256:
        problems.append("the candidate's weights are the base weights")
    if plan.rederived is not None and predicate.candidate.weights_sha256 == plan.rederived.weights_sha256:
        problems.append("the candidate's weights are those that the edit began with")
    if predicate.verdict.suite_sha256 != plan.gates_sha256:
        problems.append("the gate file is not that of the plan")
    if not edits:
        problems.append("no layer was edited")
    if len({edit.layer for edit in edits}) != len(edits):
        problems.append("a layer is listed as edited twice")
    if unplanned := {concept for edit in edits for concept in edit.concepts} - set(plan.removed):
        problems.append(f"{len(unplanned)} edited concepts are none that the plan removes")
    problems += [
        f"edit of {edit.layer} is in tower {edit.tower}, which the plan leaves alone"
        for edit in edits
        if edit.tower not in plan.method.towers
    ]
    return problems


def _claim_problems(predicate: Predicate) -> list[str]:
    try:
        claim = claim_of(predicate.plan, predicate.edits, predicate.measurements, predicate.verdict)
    except EvidenceError as error:
        return [str(error)]
    return [] if predicate.claim == claim else ["the claim is not the one that the figures make"]


def _time_problems(predicate: Predicate) -> list[str]:
    try:
        started, finished = map(_utc, (predicate.started_at, predicate.finished_at))
    except ValueError:
        return ["a time is not ISO 8601 in UTC"]
    return [] if started <= finished else ["the run ended before it started"]


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.utcoffset() != timedelta(0) or not re.match(r"\d{4}-\d\d-\d\dT", text):
        raise ValueError
    return moment
