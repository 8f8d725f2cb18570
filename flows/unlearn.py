"""Flow `unlearn`: one deletion request, from the ledger to a gated and certified version."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from prefect import flow

from contracts.canonical import to_plain
from contracts.metrics import HEADLINES
from contracts.values import Candidate, Measurements, Plan, RunResult, RunSeconds, Verdict
from tasks import gate, measure, plan, profile, publish, pull, rederive, report
from tasks import unlearn as step
from tasks.log import say
from tasks.results import keep_result
from tasks.run import claimed


@flow(name="unlearn", log_prints=False)
def unlearn(request_id: str) -> dict[str, Any]:
    """Carry one request through: pull, plan, profile, unlearn, measure, gate, publish, report.

    The request id is the only parameter, because Prefect stores parameters in plain text.  Calling
    it again after a crash continues with the same plan and leaves one version, not two.

    Returns:
        A `RunResult` as plain JSON.

    Raises:
        SluglineError: bad input, an unreachable store, or evidence that contradicts itself.
    """
    clock, started_at = _Clock(), datetime.now(UTC)
    with claimed(request_id) as running:
        run = running.run
        say(f"{request_id}: {len(run.targets)} concept(s) to forget in {run.model}")
        with clock("pull"):
            base = pull.pull(run)
            planned = plan.make_plan(run, base)
            running.bind(planned)
        with clock("profile"):
            begun = rederive.begin(run, planned, base)
            profiled = profile.profile(begun.run, begun.plan, begun.base)
        with clock("unlearn"):
            candidate = step.unlearn(begun.run, begun.plan, begun.base, profiled)
            running.heartbeat()
        with clock("measure"):
            measured = measure.measure(run, planned, base, candidate)
        with clock("gate"):
            verdict = gate.gate(run, planned, measured)
        with clock("publish"):
            plot = report.profile_plot(run, profiled, candidate)
            published = publish.register(run, planned, base, candidate, measured, verdict, started_at, plot)
            if verdict.decision == "passed":
                publish.promote_passed(run, planned, published.version)
        promoted = verdict.decision == "passed"
        page = report.write(
            run, planned, base, profiled, candidate, measured, verdict, published, promoted, clock.seconds()
        )
        seconds = clock.seconds()
        result = _result(planned, candidate, measured, verdict, published, promoted, page, seconds)
        keep_result(run.workspace, result)
        running.finish(
            verdict.decision,
            version=published.version,
            plan_sha256=planned.sha256,
            certificate=published.certificate,
            certificate_sha256=published.certificate_sha256,
            report=page,
            verdict=to_plain(verdict),
        )
        say(f"{request_id}: {verdict.decision} in {seconds.total:.1f} s, version {published.version}")
    return dict(to_plain(result))


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self._started = monotonic()
        self._taken: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = monotonic()
        try:
            yield
        finally:
            self._taken[name] = round(monotonic() - began, 2)
            say(f"  {name:<8} {self._taken[name]:6.1f} s")

    def seconds(self) -> RunSeconds:
        return RunSeconds(**self._taken, total=round(monotonic() - self._started, 2))


def _result(
    planned: Plan,
    candidate: Candidate,
    measured: Measurements,
    verdict: Verdict,
    published: publish.Publication,
    promoted: bool,
    page: str,
    seconds: RunSeconds,
) -> RunResult:
    return RunResult(
        request=planned.request_id,
        concepts=len(planned.targets),
        verdict=verdict.decision,
        promoted=promoted,
        base_version=planned.base_version,
        version=published.version,
        edited=tuple({"layer": e.layer, "tower": e.tower, "step_size": e.step_size} for e in candidate.edits),
        forget=_forgotten(measured),
        retain=_retained(measured),
        certificate=published.certificate,
        report=page,
        seconds=to_plain(seconds),
        levels=measured.levels,
        missed=verdict.missed,
    )


def _forgotten(measured: Measurements) -> dict[str, object]:
    metric = next(m for m in HEADLINES["forget"] if f"forget.{m}.after" in measured.rates)
    before, after = (measured.rates[f"forget.{metric}.{state}"] for state in ("before", "after"))
    return {
        "n": after.n,
        f"{metric}_before": before.estimate,
        f"{metric}_after": after.estimate,
        f"{metric}_after_upper95": after.upper95,
    }


def _retained(measured: Measurements) -> dict[str, object]:
    metric = next(m for m in HEADLINES["retain"] if f"retain.{m}" in measured.drops)
    kept = measured.drops[f"retain.{metric}"]
    return {
        "n": kept.n,
        f"{metric}_before": kept.before,
        f"{metric}_after": kept.after,
        "drop_upper95": kept.upper95,
    }
