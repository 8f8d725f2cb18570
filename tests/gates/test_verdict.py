"""insufficient evidence > failed > passed, and nothing passes for want of gates."""

import itertools

import pytest

from contracts.values import GateOutcome
from gates.verdict import CONTROL_MUST_PASS, ORIGINAL_MUST_FAIL, decide

RESULTS = ("passed", "failed", "insufficient evidence")
KINDS = {
    "forget": "erasure",
    "retain": "utility",
    "n": "evidence",
    f"{ORIGINAL_MUST_FAIL}: forget": "self-check",
    f"{CONTROL_MUST_PASS}: forget": "self-check",
}


def _gates(results: dict[str, str]) -> list[GateOutcome]:
    return [GateOutcome(g, KINDS[g], "m", 0.0, None, 0.1, r) for g, r in results.items()]


@pytest.mark.parametrize("results", list(itertools.product(RESULTS, repeat=3)))
def test_worst_result_decides(results: tuple[str, ...]) -> None:
    gates = dict.fromkeys(KINDS, "passed") | dict(zip(KINDS, results, strict=False))
    assert decide(_gates(gates), suite="s", suite_sha256="0").decision == max(results, key=RESULTS.index)


@pytest.mark.parametrize("gone", [g for g, kind in KINDS.items() if kind != "evidence"])
def test_verdict_without_a_needed_gate_is_insufficient(gone: str) -> None:
    gates = {gate: "passed" for gate in KINDS if gate != gone}
    assert decide(_gates(gates), suite="s", suite_sha256="0").decision == "insufficient evidence"


def test_no_gates_at_all_are_insufficient() -> None:
    assert decide([], suite="s", suite_sha256="0").decision == "insufficient evidence"
