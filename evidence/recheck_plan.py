"""Whether what was measured and gated is what the plan asked for.

Each function returns the contradictions it finds, in words; an empty list means none.
"""

from collections.abc import Iterator

from contracts.values import Measurements, Plan, Rederivation, Verdict
from evidence.recheck import NEIGHBOUR


def recheck_sets(plan: Plan) -> list[str]:
    """Forget, search and holdout sets are there, pinned, not empty, and no two sets are the same."""
    problems = [
        f"the plan names no {role} set"
        for role in ("forget", "search", "holdout")
        if role not in {ref.role for ref in plan.sets}
    ]
    problems += [f"the {ref.role} set is empty" for ref in plan.sets if ref.n_items < 1]
    digests = [ref.items_sha256 for ref in plan.sets]
    if len(set(digests)) != len(digests):
        problems.append("two roles share one set")
    if plan.rederived is not None:
        problems += _again_problems(plan, plan.rederived)
    return problems


def _again_problems(plan: Plan, rederived: Rederivation) -> Iterator[str]:
    """A re-derived edit has a forget set for each earlier request, and none that the verdict uses."""
    if len(rederived.sets) != len(plan.earlier) or not plan.earlier:
        yield f"{len(rederived.sets)} sets for {len(plan.earlier)} earlier requests to do again"
    others = {ref.items_sha256 for ref in plan.sets if ref.role != "forget"}
    if [ref for ref in rederived.sets if ref.role != "forget" or ref.items_sha256 in others]:
        yield "an earlier request's set is no forget set, or plays another role as well"


def recheck_neighbours(plan: Plan, measurements: Measurements, verdict: Verdict) -> list[str]:
    """Only planned neighbours were measured and, for a pass, all of them: none may be dropped silently."""
    names = (*measurements.drops, *measurements.levels)
    measured = {match[1] for name in names if (match := NEIGHBOUR.fullmatch(name))}
    problems = []
    if unplanned := measured - set(plan.neighbours):
        problems.append(f"{len(unplanned)} measured neighbours are not in the plan")
    if verdict.decision == "passed" and (left_out := set(plan.neighbours) - measured):
        problems.append(f"{len(left_out)} neighbours of the plan were not measured")
    return problems


def recheck_earlier(plan: Plan, verdict: Verdict) -> list[str]:
    """What the base version had forgotten is held to the promised bounds, and to no other."""
    problems = []
    if bool(plan.earlier) != bool(plan.promised) or (plan.erased_before and not plan.earlier):
        problems.append("what was erased before, by which requests and under which bounds do not go together")
    wanted = {(name.replace("forget.", "earlier.", 1), None, top) for name, top in plan.promised.items()}
    found = {
        (gate.metric, gate.minimum, gate.maximum)
        for gate in verdict.gates
        if gate.metric.startswith("earlier.") and gate.kind == "erasure"
    }
    if differ := len(wanted ^ found):
        problems.append(f"{differ} gates on what was erased before are missing, surplus or on another bound")
    return problems
