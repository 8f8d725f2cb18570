"""The sentences of a report: verdict, claim, and what is not proved, readable in 20 seconds."""

import math
from collections.abc import Mapping, Sequence

from contracts.values import Edit, GateOutcome, Plan, Verdict
from report.metrics import figure, metric_words, parse

TITLES = {"passed": "Passed", "failed": "Failed", "insufficient evidence": "Insufficient evidence"}

ORIGINAL_MUST_FAIL = "original_must_fail"  # how gates.verdict names the self-check on the untouched model

_JUDGING = ("erasure", "utility")  # the kinds that judge the candidate; the others judge the measurement
_BOUND_WORDS = {  # by the bound a gate looks at: when it holds, when it does not
    "drop": ("dropped by at most", "dropped by up to"),
    "upper95": ("is at most", "may be as high as"),
    "lower95": ("is at least", "may be as low as"),
}
_NOT_PROVED = (
    (
        "Removal from the weights",
        "The run measures what the model answers (suppression). No model retrained without the data was "
        "there to compare with.",
    ),
    ("Resistance to recovery", "Relearning, quantisation and adversarial prompts were not tried."),
    ("Membership", "No membership-inference audit was run."),
    (
        "Other words and pictures",
        "Prompts, languages and kinds of image unlike the held-out set were not tested, and many views of "
        "one drawing say little about further drawings.",
    ),
    (
        "Other copies",
        "Earlier versions, exports and caches still know the concept, and whoever can read both versions can "
        "compute the edit, and what it says of the forgotten data, from their difference.",
    ),
    ("Good faith", "Digests bind bytes. They cannot show that the right set was handed in."),
)


def headline(verdict: Verdict, names: Mapping[str, str]) -> str:
    """One sentence that carries the verdict and the figures that decided it.

    Passed: the gate nearest to its limit, of erasure and of utility.  Failed: the gate furthest beyond.
    """
    title = TITLES[verdict.decision]
    if verdict.decision == "passed":
        told = [
            finding(max(gates, key=excess), names)
            for kind in ("erasure", "utility")
            if (gates := [g for g in verdict.gates if g.kind == kind])
        ]
        return f"{title}: {' and '.join(told)}." if told else f"{title}: every gate of the suite holds."
    gates = decisive(verdict)
    if not gates:
        return f"{title}: the suite lacks an erasure gate, a utility gate or a self-check."
    told_first = finding(gates[0], names) if verdict.decision == "failed" else _undecided(gates[0], names)
    rest = len(gates) - 1
    others = f"; {rest} more gate{'' if rest == 1 else 's'} likewise" if rest else ""
    return f"{title}: {told_first}{others}."


def decisive(verdict: Verdict) -> list[GateOutcome]:
    """The gates that kept the verdict from "passed", the one that tells most first."""
    if verdict.decision == "failed":
        gates = [g for g in verdict.gates if g.result == "failed"]
        return sorted(gates, key=lambda g: (g.kind in _JUDGING, excess(g)), reverse=True)
    return [g for g in verdict.gates if g.result == "insufficient evidence"]


def claim(plan: Plan, verdict: Verdict, names: Mapping[str, str]) -> str:
    """What may be said about the candidate, and nothing more."""
    if verdict.decision == "failed":
        return "None. The candidate stays in the registry for inspection and carries no claim of erasure."
    if verdict.decision == "insufficient evidence":
        return "None. What was measured does not suffice to decide, so nothing may be said either way."
    targets = listing([names.get(t, t) for t in plan.targets])
    return (
        f"On held-out items that the step search never saw, the candidate answers to {targets} no more often "
        "than the erasure limits allow, and what had to survive stays within the utility limits. "
        "Every bound holds at 95 % confidence, each on its own."
    )


def not_proved(verdict: Verdict) -> tuple[tuple[str, str], ...]:
    """(topic, why) of what a reader must not conclude, whatever the verdict says."""
    topics = list(_NOT_PROVED)
    gated = [metric.measure for g in verdict.gates if g.kind == "erasure" and (metric := parse(g.metric))]
    if "fa" in gated and "t2i" not in gated:
        topics.insert(0, ("Text→image search", "Its figures are shown, but no erasure gate bounds them."))
    if verdict.decision != "passed":
        topics.insert(0, ("Erasure", "Not every gate was passed."))
    return tuple(topics)


def shown(verdict: Verdict, edits: Sequence[Edit]) -> tuple[tuple[str, str], ...]:
    """(topic, why) of what the run does show."""
    checks = [g for g in verdict.gates if g.kind == "self-check"]
    works = bool(checks) and all(g.result == "passed" for g in checks)
    tensors = f"{len(edits)} weight tensor{'' if len(edits) == 1 else 's'}"
    return (
        (
            "Behaviour on unseen items",
            "Every gate decides on held-out items that the step search never saw.",
        ),
        ("Cautious figures", "Gates look at the unfavourable 95 % confidence bound, not at the estimate."),
        (
            "A measurement that can fail" if works else "Not shown: that the measurement can fail",
            "In this run the untouched original failed every erasure gate and a control concept passed them."
            if works
            else "The self-checks on the original and on the control concept did not all pass.",
        ),
        (
            "A small, named edit",
            f"The plan changes {tensors}, listed under “The edit”; the digests pin the result.",
        ),
    )


def production(plan: Plan, version: str, promoted: bool) -> str:
    """What the run did to the model that serves."""
    if promoted:
        moved = f"Champion moved from version {plan.base_version} to version {version}"
        return f"{moved}; the old one is now previous."
    kept = f"Version {version} is registered as a candidate only." if version else "Nothing was registered."
    return f"Champion unchanged. {kept}"


def finding(gate: GateOutcome, names: Mapping[str, str]) -> str:
    """What a decided gate saw, with the limit it was held against."""
    metric, near = parse(gate.metric), _nearest_limit(gate)
    what = metric.words(names) if metric else gate.metric
    bracket = "" if near is None else f" (limit {figure(gate.metric, near)})"
    seen = figure(gate.metric, gate.observed)
    bound = "drop" if metric and metric.is_drop and metric.field == "upper95" else metric and metric.field
    if bound not in _BOUND_WORDS:
        return f"{metric_words(gate.metric, names)}: {seen}{bracket}"
    within, beyond = _BOUND_WORDS[bound]
    return f"{what} {within if gate.result == 'passed' else beyond} {seen}{bracket}"


def limits(gate: GateOutcome) -> str:
    """What a figure must be: "at least 40", "at most 5.0 points"; for the original, the contrary."""
    inverted = gate.gate.startswith(ORIGINAL_MUST_FAIL)
    sides = (
        ("below" if inverted else "at least", gate.minimum),
        ("above" if inverted else "at most", gate.maximum),
    )
    bounds = [f"{words} {figure(gate.metric, bound)}" for words, bound in sides if bound is not None]
    return ", ".join(bounds) or "must be present"


def excess(gate: GateOutcome) -> float:
    """How far the value lies beyond (positive) or inside (negative) its nearest limit; -inf if unmeasured."""
    observed = gate.observed
    if observed is None or not math.isfinite(observed):
        return -math.inf
    beyond = [] if gate.maximum is None else [observed - gate.maximum]
    if gate.minimum is not None:
        beyond.append(gate.minimum - observed)
    return max(beyond, default=-math.inf)


def listing(items: Sequence[str], most: int = 4) -> str:
    """ "a", "a and b", "a, b and c", or "13 concepts (a, b, c, d, …)"."""
    if len(items) > most:
        return f"{len(items)} concepts ({', '.join(items[:most])}, …)"
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1])))


def _nearest_limit(gate: GateOutcome) -> float | None:
    bounds = [b for b in (gate.minimum, gate.maximum) if b is not None]
    return min(bounds, key=lambda b: abs(b - (gate.observed or 0.0)), default=None)


def _undecided(gate: GateOutcome, names: Mapping[str, str]) -> str:
    if gate.observed is None:
        return f"{metric_words(gate.metric, names)} cannot be decided ({gate.note or 'no figure'})"
    seen = f"{metric_words(gate.metric, names)}: {figure(gate.metric, gate.observed)}, limit {limits(gate)}"
    return f"{gate.note or 'not decided'} ({seen})"
