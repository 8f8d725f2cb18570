"""The claim in words, derived from the figures so that it cannot say more than they do.

What a web-trained CLIP can honestly be shown to have is suppression: without a model trained
without the data there is no reference against which removal could be tested (Cooper et al.,
arXiv 2412.06966).  So the claim names the outputs that were tested, and the list of what is not
proved is part of every certificate.
"""

from contracts.errors import EvidenceError
from contracts.values import Edit, GateOutcome, Measurements, Plan, Rate, Verdict
from evidence.schema import Claim


def claim_of(plan: Plan, edits: tuple[Edit, ...], measurements: Measurements, verdict: Verdict) -> Claim:
    """The words for one verdict; the same figures always give the same words.

    Raises:
        EvidenceError: the verdict is "passed" but an erasure gate names a rate that is not there.
    """
    earlier = [gate for gate in verdict.gates if gate.metric.startswith("earlier.")]
    layers = ", ".join(sorted({edit.layer for edit in edits}))
    if verdict.decision != "passed":
        return Claim(f"No erasure is claimed: the verdict is {verdict.decision!r}.", _limits(layers, None))
    rates = [_rate_of(gate, measurements) for gate in verdict.own_erasure]
    tested = "; ".join(_tested(gate, measurements) for gate in verdict.own_erasure)
    carried = "; ".join(_tested(gate, measurements) for gate in earlier)
    kept = "; ".join(
        f"{gate.gate} (observed {gate.observed:.4g})"
        for gate in verdict.gates
        if gate.kind == "utility" and gate.observed is not None
    )
    shown = (
        f"In the subject weights, recognition of {len(plan.targets)} concept(s) ({', '.join(plan.targets)})"
        f" is suppressed on held-out items that the step search never saw: {tested}."
        f"{_carried(plan, carried)} Utility bounds met: {kept}."
        " In the same run the untouched model failed, and a concept it never knew passed, every erasure"
        " gate. Percentages are one-sided 95 % confidence bounds."
    )
    return Claim(shown, _limits(layers, min(rate.clusters for rate in rates)))


def _tested(gate: GateOutcome, measurements: Measurements) -> str:
    rate = _rate_of(gate, measurements)
    return (
        f"{gate.metric.removesuffix('.upper95')} {rate.hits} of {rate.n} items from {rate.clusters} drawings,"
        f" at most {_percent(rate.upper95)} (bound asked for: {_percent(gate.maximum)})"
    )


def _carried(plan: Plan, tested: str) -> str:
    n = len(plan.earlier)
    return f" What {n} earlier request(s) erased stays so, at worst: {tested}." if tested else ""


def _limits(layers: str, drawings: int | None) -> tuple[str, ...]:
    hands = "the held-out ones" if drawings is None else f"the {drawings} or more held-out ones"
    return (
        "removal of the forget set's influence on the weights: only outputs were tested, and no model"
        " trained without the set was there to compare with",
        f"absence of the concepts from layers other than those edited ({layers or 'none'}), or from"
        " the features of the edited ones",
        "resistance to relearning, fine-tuning, reversal of the edit, quantisation or adversarial input",
        f"other drawings, hands or photographs than {hands}; views of one drawing were counted as"
        " independent items",
        "anything about other copies of the base weights, their backups or caches",
    )


def _rate_of(gate: GateOutcome, measurements: Measurements) -> Rate:
    rate = measurements.rates.get(gate.metric.removesuffix(".upper95"))
    if rate is None:
        raise EvidenceError(f"erasure gate on {gate.metric} has no measured rate")
    return rate


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.2f} %"
