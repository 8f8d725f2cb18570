"""One decision from many gates."""

from collections.abc import Sequence

from contracts.values import GateOutcome, Verdict

# Names under which the self-checks appear in a verdict and a certificate, each followed by ": <gate>".
ORIGINAL_MUST_FAIL = "original_must_fail"
CONTROL_MUST_PASS = "control_must_pass"


def decide(gates: Sequence[GateOutcome], *, suite: str, suite_sha256: str) -> Verdict:
    """passed only if every gate passed; insufficient evidence outranks failed, failed outranks passed.

    A verdict without an erasure gate, a utility gate and both self-checks is insufficient evidence,
    whatever the gates that are there say.
    """
    kinds = {gate.kind for gate in gates}
    checks = {gate.gate.partition(":")[0] for gate in gates if gate.kind == "self-check"}
    complete = {"erasure", "utility"} <= kinds and {ORIGINAL_MUST_FAIL, CONTROL_MUST_PASS} <= checks
    results = {gate.result for gate in gates}
    if not complete or "insufficient evidence" in results:
        return Verdict("insufficient evidence", tuple(gates), suite, suite_sha256)
    return Verdict("failed" if "failed" in results else "passed", tuple(gates), suite, suite_sha256)
