"""One row: a contender forgets, is judged by the gates and audited."""

import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from time import process_time
from typing import Any

from bench.audits import EVERY_AUDIT, OF_IMAGES
from bench.case import Case, State
from bench.contenders import Contender
from bench.cost import Cost, costing
from bench.rows import Row
from contracts.canonical import to_plain
from contracts.errors import SluglineError
from contracts.values import Measurements, Verdict
from gates.runner import run_suite
from unlearning.determinism import deterministic
from unlearning.families.clip import ClipModel
from unlearning.methods import unlearn
from unlearning.request import Outcome

RATES = (
    "forget.fa1",
    "forget.fa5",
    "forget.t2i5",
    "retain.ta1",
    "retain.ta5",
    "neighbours.ta1",
    "control.fa1",
    "control.fa5",
    "cross.ta1",
)
DROPS = ("retain.ta1", "retain.ta5", "neighbours.ta1", "neighbours.worst.ta1", "cross.ta1")
_DIGITS = 6


def trial(case: Case, contender: Contender, work: ClipModel, audits: Mapping[str, Any]) -> Row:
    """What a contender makes of a request; an error becomes a row too.

    Args:
        case: the request.
        contender: edits `work`, or is the retrained model.
        work: a second copy of the base model, whatever state it is in.
        audits: the settings of every audit that is wanted, by name.

    Returns:
        A row without its key: opaque ids, figures and option values only.
    """
    row: Row = {
        "model": case.model_name,
        "request": case.request.name,
        "kind": case.request.kind,
        "targets": list(case.request.targets),
        "label": contender.label,
        "method": to_plain(contender.resolved),
        "retrained": case.retrained.used if case.retrained is not None else None,
        "error": None,
    }
    try:
        with deterministic(case.plan.seed, case.plan.threads):
            return {**row, **_measured(case, contender, work, audits)}
    except SluglineError as error:
        return {**row, "error": {"class": type(error).__name__, "message": str(error), "expected": True}}
    except Exception as error:
        # Its message may hold anything, so the row does not; the table counts it, a re-run tries again.
        traceback.print_exc(file=sys.stderr)
        return {**row, "error": {"class": type(error).__name__, "message": "", "expected": False}}


def _measured(case: Case, contender: Contender, work: ClipModel, audits: Mapping[str, Any]) -> Row:
    found: Row = {}
    began = process_time()
    if contender.method is None:
        assert case.retrained is not None
        state = case.retrained.state
    else:
        work.net.load_state_dict(case.base.model.net.state_dict())
        inputs = case.given(contender.method)
        with costing() as cost:
            outcome = unlearn(work, inputs, contender.method)
        found |= {"cost": _cost(cost), "retain_known": inputs is not case.inputs, **_edits(outcome)}
        began = process_time()
        towers = frozenset(edit.tower for edit in outcome.edits)
        state = State(work, towers, case.holdout.features(work, towers), case.base.examples)
    figures = case.held(state).figures(state.features)
    verdict = run_suite(case.suite, figures).verdict
    seconds = {"judge": round(process_time() - began, 2)}
    found |= {**_figures(figures), **_verdict(verdict), "audits": {}}
    for name, settings in audits.items():
        began = process_time()
        before = case.of_base(name, EVERY_AUDIT[name])
        same = name in OF_IMAGES and "vision" not in state.towers
        after = before if same else EVERY_AUDIT[name](case, state)
        found["audits"][name] = _rounded({"settings": settings, "before": before, "after": after})
        seconds[name] = round(process_time() - began, 2)
    return {**found, "seconds": seconds}


def _cost(cost: Cost) -> dict[str, Any]:
    return {name: None if value is None else round(value, 2) for name, value in asdict(cost).items()}


def _edits(outcome: Outcome) -> Row:
    layers = [edit.layer for edit in outcome.edits]
    return {
        "reached_target": outcome.reached_target,
        "edited": {
            "towers": sorted({edit.tower for edit in outcome.edits}),
            "tensors": len(layers),
            # Which ones says something where there are few; the others change whole towers.
            "layers": layers if len(layers) <= 2 else [],
        },
    }


def _figures(figures: Measurements) -> Row:
    singles = {
        name.removeprefix("neighbour.").removesuffix(".ta1"): drop.estimate
        for name, drop in figures.drops.items()
        if name.startswith("neighbour.")
    }
    found: Row = _rounded(
        {
            "rates": {
                name: {state: asdict(figures.rates[f"{name}.{state}"]) for state in ("before", "after")}
                for name in RATES
                if f"{name}.after" in figures.rates
            },
            "drops": {name: asdict(figures.drops[name]) for name in DROPS if name in figures.drops},
            "worst_neighbour": max(singles, key=lambda label: singles[label]) if singles else None,
        }
    )
    return found


def _verdict(verdict: Verdict) -> Row:
    """Erased: every erasure gate passed, whatever it cost, of a concept that the original surely knew."""
    erasure = all(gate.result == "passed" for gate in verdict.gates if gate.kind == "erasure")
    return {
        "verdict": verdict.decision,
        "missed": list(verdict.missed),
        "erased": erasure and verdict.decision != "insufficient evidence",
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return value
