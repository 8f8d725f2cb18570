"""Report: one HTML file and one JSON file per run, and the profile plot for the registry."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.values import Candidate, Measurements, Plan, RunSeconds, Verdict
from tasks.gate import DOCS_FOLDER
from tasks.inputs import read_classes
from tasks.measure import RETRIEVALS_FILE
from tasks.profile import ProfileHandle
from tasks.publish import Publication
from tasks.run import Run

if TYPE_CHECKING:
    from report.record import Retrieval

PIXELS = 64


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
    public = not any(ref.personal for ref in plan.sets)
    classes = read_classes(Path(run.folder), plan.axis)
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
        retrievals=_retrievals(run, plan) if public else (),
        names=dict(zip(classes.ids, classes.names, strict=True)) if public else {},
    )
    page, _ = write_report(record, folder)
    return str(page)


def _retrievals(run: Run, plan: Plan) -> tuple[Retrieval, ...]:
    import pandas as pd

    from data.layout import read_items
    from report.record import Hit, Retrieval

    found: list[dict[str, Any]] = json.loads(run.path(RETRIEVALS_FILE).read_text(encoding="utf-8"))
    sets = [read_items(run.path(role)).assign(role=role) for role in ("holdout", "control")]
    items = pd.concat(sets).set_index("id", drop=False)
    pictures = _Pictures(run, items)

    def hits(entry: dict[str, Any], state: str) -> tuple[Hit, ...]:
        if entry["kind"] == "i2t":
            return tuple(Hit(label, score) for label, score in entry[state])
        return tuple(Hit(str(items.loc[i, plan.axis]), score, pictures[i]) for i, score in entry[state])

    return tuple(
        Retrieval(
            kind=entry["kind"],
            query=entry["query"],
            before=hits(entry, "before"),
            after=hits(entry, "after"),
            image=pictures[entry["item"]] if entry["kind"] == "i2t" else "",
        )
        for entry in found
    )


class _Pictures:
    """Held-out pictures by item id, as base64 PNG."""

    def __init__(self, run: Run, items: Any) -> None:
        self._run = run
        self._items = items

    def __getitem__(self, item: str) -> str:
        from PIL import Image

        from data.reader import load_images

        row = self._items.loc[[item]]
        pixels = load_images(self._run.path(row["role"].iloc[0]), row, PIXELS)[0]
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", optimize=True)
        return base64.b64encode(out.getvalue()).decode()
