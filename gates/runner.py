"""Running a gate suite with Great Expectations, so that nothing undecidable ever passes.

Great Expectations decides whether a figure is within its bound.  Around it stand the checks that it
lacks: a figure must exist and be finite before it may enter the one-row table; the table must have
one row; the column must not be null; and an exception inside an expectation, which Great
Expectations files under "failed", is reported as what it is, a missing decision.

The erasure gates run over three tables in the same run: the candidate, the original (must fail
each) and a control concept the model never knew (must pass each).  Without the latter two an
erasure gate that fits everything, or nothing, would look like evidence.  Where the base version
carries erasures of earlier requests, a fourth table holds these to the bounds that they once passed: a
later edit may bring an earlier concept back.
"""

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from contracts.values import GateOutcome, Measurements, Verdict
from gates.columns import flatten
from gates.suite import Gate, GateSuite
from gates.verdict import CONTROL_MUST_PASS, ORIGINAL_MUST_FAIL, decide

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.data_context.types.base import DataContextConfig

Subject = Literal["candidate", "original", "control", "earlier"]
Result = Literal["passed", "failed", "insufficient evidence"]
_PREFIX: Mapping[Subject, str] = {
    "candidate": "",
    "original": f"{ORIGINAL_MUST_FAIL}: ",
    "control": f"{CONTROL_MUST_PASS}: ",
    "earlier": "",
}


@dataclass(frozen=True)
class GateRun:
    """The verdict, and per subject the Great Expectations result that `data_docs` renders."""

    verdict: Verdict
    validations: Mapping[Subject, "ExpectationSuiteValidationResult"]


@dataclass(frozen=True)
class _Decision:
    """What became of one gate on one subject; `within` is None if nothing could be decided."""

    metric: str
    observed: float | None
    within: bool | None
    note: str


def run_suite(
    suite: GateSuite, measurements: Measurements, promised: Mapping[str, float] | None = None
) -> GateRun:
    """Decide every gate and both self-checks.

    Never raises for a missing, non-finite or undecidable figure: that gate's result becomes
    "insufficient evidence", and so does the verdict.

    Args:
        suite: the gates.
        measurements: the figures.
        promised: bounds that hold for what was erased before (`contracts.values.Plan`).
    """
    figures = flatten(measurements)
    erasure = [gate for gate in suite.gates if gate.kind == "erasure"]
    validations: dict[Subject, ExpectationSuiteValidationResult] = {}
    outcomes: list[GateOutcome] = []
    plan: tuple[tuple[Subject, Sequence[Gate]], ...] = (
        ("candidate", suite.gates),
        ("original", erasure),
        ("control", erasure),
        ("earlier", [_promise(column, maximum) for column, maximum in (promised or {}).items()]),
    )
    for subject, gates in plan:
        decisions, validation = _decide_subject(subject, gates, figures, suite.name)
        if validation is not None:
            validations[subject] = validation
        outcomes += [_outcome(subject, g, d) for g, d in zip(gates, decisions, strict=True)]
    return GateRun(decide(outcomes, suite=suite.name, suite_sha256=suite.sha256), validations)


def _promise(column: str, maximum: float) -> Gate:
    return Gate(
        type="expect_column_max_to_be_between",
        column=column,
        minimum=None,
        maximum=maximum,
        kind="erasure",
        why="What earlier requests erased stays within the bound that they passed.",
    )


def column_of(subject: Subject, column: str) -> str:
    """Where an erasure gate's column finds its figure for that subject."""
    if subject == "original":
        return column.replace(".after.", ".before.")
    if subject == "candidate":
        return column
    return column.replace("forget.", f"{subject}.", 1)


def _decide_subject(
    subject: Subject, gates: Sequence[Gate], figures: Mapping[str, Any], suite_name: str
) -> tuple[list[_Decision], "ExpectationSuiteValidationResult | None"]:
    observed: dict[str, float] = {}
    problems: dict[str, str] = {}
    for column in dict.fromkeys(gate.column for gate in gates):
        value = figures.get(column_of(subject, column))
        if value is None:
            problems[column] = "the metric is missing"
        elif not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            problems[column] = "the metric is not a finite number"
        else:
            observed[column] = float(value)
    decidable = [gate for gate in gates if gate.column in observed]
    validation = _validate(f"{suite_name} / {subject}", decidable, observed) if decidable else None
    verdicts = _read_results(validation, decidable)
    decisions = []
    for gate in gates:
        within, note = verdicts.get(gate.name, (None, problems.get(gate.column, "")))
        metric = column_of(subject, gate.column)
        decisions.append(_Decision(metric, observed.get(gate.column), within, note))
    return decisions, validation


def _validate(
    title: str, gates: Sequence[Gate], observed: Mapping[str, float]
) -> "ExpectationSuiteValidationResult":
    """One Great Expectations validation of a one-row table, in a context of its own."""
    gx = _great_expectations()
    expectations: list[dict[str, Any]] = [
        {"type": "expect_table_row_count_to_equal", "kwargs": {"value": 1}, "meta": {"guard": ""}}
    ]
    for gate in gates:
        bound = {"min_value": gate.minimum} if gate.maximum is None else {"max_value": gate.maximum}
        meta = {"gate": gate.name, "kind": gate.kind, "why": gate.why}
        expectations.append({"type": gate.type, "kwargs": {"column": gate.column, **bound}, "meta": meta})
    for column in dict.fromkeys(gate.column for gate in gates):
        not_null = {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": column}}
        expectations.append({**not_null, "meta": {"guard": column}})

    context = gx.get_context(mode="ephemeral", project_config=_in_memory())
    batch = context.data_sources.add_pandas("gates").add_dataframe_asset("measurements")
    definition = gx.ValidationDefinition(
        name=title,
        data=batch.add_batch_definition_whole_dataframe("one row"),
        suite=context.suites.add(gx.ExpectationSuite(name=title, expectations=expectations)),
    )
    result: ExpectationSuiteValidationResult = context.validation_definitions.add(definition).run(
        batch_parameters={"dataframe": _one_row(observed)}, result_format="COMPLETE"
    )
    return result


def _one_row(observed: Mapping[str, float]) -> pd.DataFrame:
    # dtype=object: with numpy 2 scalars the Data Docs would show "--" for every observed value.
    return pd.DataFrame([dict(observed)], dtype=object)


def _in_memory() -> "DataContextConfig":
    """Great Expectations' stores in memory, without the Data Docs folder it would make in TMPDIR."""
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    return DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
    )


def _great_expectations() -> Any:
    """Import Great Expectations (seconds, hence not at the top) without its noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its imports of sre_parse and friends
        import great_expectations as gx
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    return gx


def _read_results(
    validation: "ExpectationSuiteValidationResult | None", gates: Sequence[Gate]
) -> dict[str, tuple[bool | None, str]]:
    """gate name -> (within its bound or None, note)."""
    results: dict[str, tuple[bool | None, str]] = {}
    sound: dict[str, bool] = {}
    for result in validation.results if validation else ():
        meta = result.expectation_config.meta if result.expectation_config else {}
        raised = _raised(result.exception_info)
        if "guard" in meta:
            sound[meta["guard"]] = bool(result.success) and not raised
        elif "gate" in meta:
            results[meta["gate"]] = (
                (None, "Great Expectations raised an error") if raised else (bool(result.success), "")
            )
    for gate in gates:
        if not (sound.get("") and sound.get(gate.column)):
            results[gate.name] = (None, "the table is not one row without nulls")
        elif gate.name not in results:
            results[gate.name] = (None, "Great Expectations gave no result")
    return results


def _raised(info: Mapping[str, Any] | None) -> bool:
    """Whether an expectation raised; the info is flat, or nested once per metric."""
    if not info:
        return False
    nested = (part for part in info.values() if isinstance(part, Mapping))
    return bool(info.get("raised_exception")) or any(part.get("raised_exception") for part in nested)


def _outcome(subject: Subject, gate: Gate, decision: _Decision) -> GateOutcome:
    result: Result = "insufficient evidence"
    note = decision.note
    if decision.within is not None:
        result, note = _judge(subject, gate, decision.within)
    own = replace(gate, column=decision.metric) if subject == "earlier" else gate
    return GateOutcome(
        gate=_PREFIX[subject] + own.name,
        kind=gate.kind if subject in ("candidate", "earlier") else "self-check",
        metric=decision.metric,
        observed=decision.observed,
        minimum=gate.minimum,
        maximum=gate.maximum,
        result=result,
        note=note,
    )


def _judge(subject: Subject, gate: Gate, within: bool) -> tuple[Result, str]:
    """What it means that a figure lies within its bound, or does not, for that subject."""
    if subject == "original":
        idle = "the original passes this gate, so passing it shows nothing"
        return ("insufficient evidence", idle) if within else ("passed", "")
    if within:
        return "passed", ""
    if subject == "control":
        return "insufficient evidence", "a concept the model never knew fails this gate"
    if gate.kind == "evidence":
        return "insufficient evidence", "too little evidence"
    return "failed", ""
