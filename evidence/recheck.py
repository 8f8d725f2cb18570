"""Deriving a verdict a second time, from the stored counts.

Each function returns the contradictions it finds, in words; an empty list means none.  Nothing here
is shared with `gates`: the verifier must not repeat a mistake made there.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from contracts.metrics import LEVELS, OF_EACH_NEIGHBOUR
from contracts.values import Decision, Drop, GateOutcome, Level, Measurements, Rate, Verdict
from evidence.binomial import one_sided_95

# The two derivations of a Clopper-Pearson bound agree to about 1e-12.
_BOUND_TOLERANCE = 1e-9
_EXACT = 1e-12
# Counts beyond this are no measurement of ours and would only keep the verifier busy.
_MAX_ITEMS = 10_000_000
NEIGHBOUR = re.compile(rf"neighbour\.([cs]-[0-9a-f]{{8}})\.({'|'.join((*OF_EACH_NEIGHBOUR, *LEVELS))})")
Lost = TypeVar("Lost", Drop, Level)
_SELF_CHECKS: dict[str, Callable[[str], str]] = {
    "original_must_fail": lambda metric: metric.replace(".after.", ".before."),
    "control_must_pass": lambda metric: metric.replace("forget.", "control.", 1),
}


def recheck_rates(measurements: Measurements) -> list[str]:
    """Counts possible, estimates and exact bounds as the counts say, depths and states consistent."""
    problems = []
    for name, rate in sorted(measurements.rates.items()):
        if not (1 <= rate.n <= _MAX_ITEMS and 0 <= rate.hits <= rate.n and 1 <= rate.clusters <= rate.n):
            problems.append(f"{name}: {rate.hits} hits, {rate.n} items, {rate.clusters} drawings cannot be")
            continue
        lower, upper = one_sided_95(rate.hits, rate.n)
        if not _close(rate.estimate, rate.hits / rate.n, _EXACT):
            problems.append(f"{name}: estimate {rate.estimate} is not {rate.hits} of {rate.n}")
        if not _close(rate.lower95, lower, _BOUND_TOLERANCE):
            problems.append(f"{name}: lower95 {rate.lower95} should be {lower:.6f}")
        if not _close(rate.upper95, upper, _BOUND_TOLERANCE):
            problems.append(f"{name}: upper95 {rate.upper95} should be {upper:.6f}")
        problems += _sibling_problems(name, rate, measurements)
    return problems


def _sibling_problems(name: str, rate: Rate, measurements: Measurements) -> Iterator[str]:
    """The same items before and after, at every depth; and more hits at more depth."""
    metric, _, state = name.rpartition(".")
    if metric.startswith("earlier."):  # of the request that is known best by that metric, and after alone
        if state != "after":
            yield f"{name}: what was erased before is measured after the edit"
        return
    partner = f"{metric}.{'before' if state == 'after' else 'after'}"
    if partner not in measurements.rates:
        yield f"{name}: {partner} is missing"
    deeper = re.sub(r"1\.(before|after)$", r"5.\1", name)
    for other in (partner, deeper):
        sibling = measurements.rates.get(other, rate)
        if (sibling.n, sibling.clusters) != (rate.n, rate.clusters):
            yield f"{name} and {other} are not on the same items"
    if measurements.rates.get(deeper, rate).hits < rate.hits:
        yield f"{name} has more hits than {deeper}"


def recheck_drops(measurements: Measurements) -> list[str]:
    """Drops are differences of their rates, bounds enclose them, the worst neighbour is the worst.

    The bootstrap bounds themselves cannot be derived again without the item-level outcomes, which
    never leave the run folder.
    """
    problems = []
    for name, drop in sorted(measurements.drops.items()):
        if not _close(drop.estimate, drop.before - drop.after, _EXACT):
            problems.append(f"{name}: drop {drop.estimate} is not before minus after")
        if not -1 <= drop.lower95 <= drop.estimate <= drop.upper95 <= 1:
            problems.append(f"{name}: bounds do not enclose the drop")
        if not name.startswith("neighbours.worst."):
            problems += _drop_problems(name, drop, measurements)
    for metric in OF_EACH_NEIGHBOUR:
        problems += _worst_problems(metric, measurements.drops, lambda drop: drop.estimate)
    return problems


def recheck_levels(measurements: Measurements) -> list[str]:
    """Losses are before minus after, bounds enclose them, the worst neighbour is the worst.

    As for drops, the bounds themselves need the item-level table.
    """
    problems = []
    for name, level in sorted(measurements.levels.items()):
        if not (2 <= level.clusters <= level.n <= _MAX_ITEMS):
            problems.append(f"{name}: {level.n} items of {level.clusters} clusters cannot be")
        if not _close(level.loss, level.before - level.after, _EXACT):
            problems.append(f"{name}: loss {level.loss} is not before minus after")
        if not level.lower95 <= level.loss <= level.upper95:
            problems.append(f"{name}: bounds do not enclose the loss")
    for metric in LEVELS:
        problems += _worst_problems(metric, measurements.levels, lambda level: level.loss)
    return problems


def _drop_problems(name: str, drop: Drop, measurements: Measurements) -> Iterator[str]:
    for state, share in (("before", drop.before), ("after", drop.after)):
        rate = measurements.rates.get(f"{name}.{state}")
        if rate is None:
            yield f"{name}: rate {name}.{state} is missing"
        elif (rate.n, rate.clusters) != (drop.n, drop.clusters) or not _close(rate.estimate, share, _EXACT):
            yield f"{name}: drop and rate {name}.{state} differ"


def _worst_problems(metric: str, found: Mapping[str, Lost], loss: Callable[[Lost], float]) -> Iterator[str]:
    singles = [
        one for name, one in found.items() if (match := NEIGHBOUR.fullmatch(name)) and match[2] == metric
    ]
    worst, pooled = found.get(f"neighbours.worst.{metric}"), found.get(f"neighbours.{metric}")
    if worst is None or pooled is None or not singles:
        if worst is not None or pooled is not None or singles:
            yield "neighbours are measured one by one, pooled and at worst, or not at all"
        return
    if sum(one.n for one in singles) != pooled.n:
        yield "the neighbours' items do not add up to the pooled ones"
    # Bounds aside, the worst one is one of the neighbours, and none lost more.
    known = [replace(one, lower95=worst.lower95, upper95=worst.upper95) for one in singles]
    if worst not in known or loss(worst) != max(loss(one) for one in singles):
        yield f"neighbours.worst.{metric} is not the neighbour that lost most"
    if (worst.lower95, worst.upper95) != (pooled.lower95, max(one.upper95 for one in singles)):
        yield f"neighbours.worst.{metric} has other bounds than its neighbours give"


def recheck_gates(measurements: Measurements, verdict: Verdict) -> list[str]:
    """Every gate re-decided from its figure and bound, and named for what it bounds."""
    problems = []
    for gate in verdict.gates:
        figure = figure_of(measurements, gate.metric)
        if gate.observed != figure:
            problems.append(f"{gate.gate}: observed {gate.observed}, the measurements say {figure}")
        if _title(gate) is None or not gate.gate.endswith(_title(gate) or ""):
            problems.append(f"{gate.gate}: has another bound than its name says")
        elif gate.kind != "self-check" and gate.gate != f"{gate.metric}{_title(gate)}":
            problems.append(f"{gate.gate}: is on another metric than its name says")
        # A run may know less than the figures say (its gate engine may have raised), never more.
        elif gate.result not in (_result(gate, figure), "insufficient evidence"):
            problems.append(f"{gate.gate}: result {gate.result!r} should be {_result(gate, figure)!r}")
        elif gate.result == "insufficient evidence" and not gate.note:
            problems.append(f"{gate.gate}: insufficient evidence without a reason")
    return problems


def recheck_self_checks(verdict: Verdict) -> list[str]:
    """Each erasure gate was also run on the original and the control, under the same bound."""
    wanted = {
        (f"{check}: {gate.gate}", moved(gate.metric), gate.minimum, gate.maximum)
        for gate in verdict.own_erasure
        for check, moved in _SELF_CHECKS.items()
    }
    found = [(g.gate, g.metric, g.minimum, g.maximum) for g in verdict.gates if g.kind == "self-check"]
    if len(found) != len(set(found)) or set(found) != wanted:
        return [f"{len(wanted ^ set(found)) or 1} self-checks are missing, double or on another bound"]
    return []


def recheck_decision(verdict: Verdict) -> list[str]:
    """The decision that the gates' results make."""
    kinds = {gate.kind for gate in verdict.gates}
    results = {gate.result for gate in verdict.gates}
    decision: Decision = "passed"
    if "failed" in results:
        decision = "failed"
    if "insufficient evidence" in results or not {"erasure", "utility", "self-check"} <= kinds:
        decision = "insufficient evidence"
    problems = []
    if verdict.decision != decision:
        problems.append(f"the gates make the decision {decision!r}, not {verdict.decision!r}")
    names = [gate.gate for gate in verdict.gates]
    if len(names) != len(set(names)):
        problems.append("a gate is listed twice")
    for gate in verdict.gates:
        if gate.kind == "erasure" and not re.fullmatch(r"(forget|earlier)\..+\.after\.upper95", gate.metric):
            problems.append(f"{gate.gate}: an erasure gate bounds what is still recognised afterwards")
        if gate.kind in ("erasure", "utility") and not _can_fail(gate):
            problems.append(f"{gate.gate}: no measurement could miss this bound")
    return problems


def figure_of(measurements: Measurements, column: str) -> float | None:
    """The figure behind a gate's column, None if it was not measured."""
    metric, _, field = column.rpartition(".")
    if metric.endswith(".drop"):
        value: object = measurements.drops.get(metric.removesuffix(".drop"))
    elif metric.endswith(".loss"):
        value = measurements.levels.get(metric.removesuffix(".loss"))
    else:
        value = measurements.rates.get(metric)
    figure = getattr(value, field, None)
    return None if figure is None else float(figure)


def _title(gate: GateOutcome) -> str | None:
    """The bound as it stands in the gate's name; None unless there is exactly one."""
    if (gate.minimum is None) == (gate.maximum is None):
        return None
    return f" <= {gate.maximum:g}" if gate.maximum is not None else f" >= {gate.minimum:g}"


def _result(gate: GateOutcome, figure: float | None) -> str:
    if figure is None:
        return "insufficient evidence"
    within = (gate.maximum is None or figure <= gate.maximum) and (
        gate.minimum is None or figure >= gate.minimum
    )
    if gate.gate.startswith("original_must_fail: "):
        return "insufficient evidence" if within else "passed"
    if within:
        return "passed"
    return "failed" if gate.kind in ("erasure", "utility") else "insufficient evidence"


def _can_fail(gate: GateOutcome) -> bool:
    in_units = gate.metric.removesuffix(".upper95").endswith(".loss")  # decibels know no largest value
    return (gate.maximum is not None and (gate.maximum < 1 or in_units)) or (
        gate.minimum is not None and gate.minimum > 0
    )


def _close(a: float, b: float, tolerance: float) -> bool:
    return math.isclose(a, b, rel_tol=0, abs_tol=tolerance)
