"""Report: one HTML file and one JSON file per run, and the profile plot for the registry."""

from __future__ import annotations

import json
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Candidate, Measurements, ModelHandle, Plan, RunSeconds, Verdict
from tasks.families import family_tasks
from tasks.gate import DOCS_FOLDER
from tasks.measure import SHOWN_FILE
from tasks.plan import read_labels
from tasks.profiling import ProfileHandle
from tasks.publish import Publication
from tasks.run import Run


@task(name="profile plot", cache_policy=NO_CACHE)
def profile_plot(run: Run, profiled: ProfileHandle, candidate: Candidate) -> str:
    """Layer table (CSV) and plot (PNG) in the run folder, for the registry; the plot's path."""
    import pandas as pd

    from contracts.canonical import to_plain
    from report.plots.profile import profile_png

    rows = [{"concept": c, **to_plain(s)} for c, scores in profiled.scores.items() for s in scores]
    pd.DataFrame(rows).to_csv(run.path("layers.csv"), index=False)
    path = run.path("profile.png")
    # No names: the registry is read by more people than the report.
    path.write_bytes(profile_png(profiled.scores, candidate.edits, {}))
    return str(path)


@task(name="report", cache_policy=NO_CACHE)
def write(
    run: Run,
    plan: Plan,
    base: ModelHandle,
    profiled: ProfileHandle,
    candidate: Candidate,
    measurements: Measurements,
    verdict: Verdict,
    published: Publication,
    promoted: bool,
    seconds: RunSeconds,
) -> str:
    """Write the report beside Great Expectations' pages; the path of the HTML file.

    Names and pictures appear only when every set of the run says that it is not personal.
    """
    from report.html import write_report
    from report.record import RunRecord

    folder = run.workspace.reports / run.request_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public = not plan.personal
    labels = read_labels(run.path("labels"))
    record = RunRecord(
        plan=plan,
        version=published.version,
        promoted=promoted,
        verdict=verdict,
        measurements=measurements,
        profile=profiled.scores,
        edits=candidate.edits,
        trials=candidate.trials,
        curve=candidate.curve,
        reached_target=candidate.reached_target,
        weights_sha256=candidate.weights_sha256,
        seconds=seconds,
        certificate=published.certificate,
        certificate_sha256=published.certificate_sha256,
        data_docs=f"{DOCS_FOLDER}/index.html",
        names=dict(zip(labels["id"], labels["name"], strict=True)) if public else {},
        **(_exhibits(run, plan, base.family) if public else {}),
    )
    page, _ = write_report(record, folder)
    return str(page)


def _exhibits(run: Run, plan: Plan, family: str) -> dict[str, Any]:
    shown = json.loads(run.path(SHOWN_FILE).read_text(encoding="utf-8"))
    return family_tasks(family).exhibits(run, plan, shown)
