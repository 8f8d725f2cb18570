"""Certificates that the offline verifier accepts, for the tests of promotion."""

from datetime import UTC, datetime
from pathlib import Path

from contracts.values import (
    Candidate,
    Drop,
    Edit,
    GateOutcome,
    Measurements,
    Method,
    ModelHandle,
    Plan,
    Rate,
    Role,
    SetRef,
    Verdict,
)
from evidence.binomial import one_sided_95
from evidence.certificate import build, write

_ITEMS = 100
_ERASED = "forget.fa1.after.upper95 <= 0.1"
_KEPT = "retain.ta1.drop.upper95 <= 0.05"
_TARGET = "c-0123abcd"
_SUITE = "3" * 64


def plan_of(request_id: str, model: str, base: ModelHandle, earlier: tuple[str, ...] = ()) -> Plan:
    """The plan of a request on that base version, which carries the erasures of earlier ones."""
    roles: tuple[Role, ...] = ("forget", "search", "holdout")
    sets = tuple(
        SetRef(role, f"data/{role}", "a" * 40, f"{i}.dir", f"{i}" * 64, _ITEMS, False)
        for i, role in enumerate(roles)
    )
    return Plan(
        request_id=request_id,
        model=model,
        base_version=base.version,
        base_weights_sha256=base.weights_sha256,
        axis="object",
        targets=(_TARGET,),
        neighbours=(),
        sets=sets,
        labels_sha256="4" * 64,
        method=Method(),
        gates_sha256=_SUITE,
        seed=0,
        threads=1,
        device="cpu",
        software={},
        earlier=earlier,
        promised={"forget.fa1.after.upper95": 0.1} if earlier else {},
    )


def write_certificate(
    path: Path, plan: Plan, base: ModelHandle, weights_sha256: str, manifest_sha256: str, hits_after: int = 0
) -> None:
    """Certify weights: passed if at most a few of the 100 forget items are still hit, else failed."""
    erased = _rate(hits_after)
    passed = erased.upper95 <= 0.1
    rates = {
        "forget.fa1.before": _rate(90),
        "forget.fa1.after": erased,
        "control.fa1.before": _rate(0),
        "control.fa1.after": _rate(0),
        "retain.ta1.before": _rate(80),
        "retain.ta1.after": _rate(80),
    }
    if plan.earlier:
        rates["earlier.fa1.after"] = _rate(0)
    drop = Drop(_ITEMS, _ITEMS, 0.8, 0.8, 0.0, 0.0, 0.01)
    gates = (
        _gate(_ERASED, "erasure", "forget.fa1.after.upper95", erased.upper95, 0.1, passed),
        _gate(_KEPT, "utility", "retain.ta1.drop.upper95", drop.upper95, 0.05, True),
        _gate(
            f"original_must_fail: {_ERASED}",
            "self-check",
            "forget.fa1.before.upper95",
            rates["forget.fa1.before"].upper95,
            0.1,
            True,
        ),
        _gate(
            f"control_must_pass: {_ERASED}",
            "self-check",
            "control.fa1.after.upper95",
            rates["control.fa1.after"].upper95,
            0.1,
            True,
        ),
    )
    if plan.earlier:
        name, metric = _ERASED.replace("forget", "earlier"), "earlier.fa1.after.upper95"
        gates += (_gate(name, "erasure", metric, _rate(0).upper95, 0.1, True),)
    edit = Edit("visual.proj", "vision", 0.1, (_TARGET,), 0.01)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    statement = build(
        plan=plan,
        base=base,
        candidate=Candidate("", weights_sha256, (edit,), True, (), ()),
        candidate_manifest_sha256=manifest_sha256,
        measurements=Measurements(rates, {"retain.ta1": drop}),
        verdict=Verdict("passed" if passed else "failed", gates, "erasure", _SUITE),
        started_at=now,
        finished_at=now,
    )
    write(statement, path)


def _rate(hits: int) -> Rate:
    lower, upper = one_sided_95(hits, _ITEMS)
    return Rate(hits, _ITEMS, _ITEMS, hits / _ITEMS, lower, upper)


def _gate(name: str, kind: str, metric: str, observed: float, maximum: float, passed: bool) -> GateOutcome:
    result = "passed" if passed else "failed"
    return GateOutcome(name, kind, metric, observed, None, maximum, result)  # type: ignore[arg-type]
