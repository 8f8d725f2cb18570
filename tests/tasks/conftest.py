"""Runs by hand: the functions behind the Prefect tasks, called without Prefect."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from contracts.canonical import to_plain
from contracts.values import Candidate, Measurements, ModelHandle, Plan, Verdict
from data.layout import concept_id
from evidence.manifest import write_manifest
from intake.requests import Evidence, NewRequest
from intake.workspace import Workspace
from tasks import gate, measure, plan, profile, publish, pull, report
from tasks import unlearn as step
from tasks.profiling import ProfileHandle
from tasks.publish import Publication
from tasks.run import Run
from tasks.stores import open_ledger, open_registry
from tests.world import FORGET, MODEL, TARGET, World, copy_home, work_in

STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Finished:
    """All values of one run up to the verdict; its run folder is still there."""

    home: Path
    run: Run
    plan: Plan
    base: ModelHandle
    profiled: ProfileHandle
    candidate: Candidate
    measured: Measurements
    verdict: Verdict

    def publish(
        self, run: Run, candidate: Candidate | None = None, started: datetime = STARTED
    ) -> Publication:
        """Register in the workspace of `run`."""
        plot = report.profile_plot.fn(run, self.profiled, self.candidate)
        return publish.register.fn(
            run,
            self.plan,
            self.base,
            candidate or self.candidate,
            self.measured,
            self.verdict,
            started,
            plot,
        )


def run_in(home: Path, folder: Path, **changes: Any) -> Run:
    """A run of the target's request in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "request_id": "req-00000000000000aa",
        "model": MODEL,
        "axis": "object",
        "targets": (concept_id(TARGET),),
        "forget_set": FORGET,
        "revision": None,
        "options": {},
        "home": str(home),
        "folder": str(folder),
        "plan": None,
    }
    return Run(**{**values, **changes})


@pytest.fixture(scope="session")
def finished(world: World, fresh_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Pull, plan, profile, unlearn, measure and gate, once; nothing is published."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        copy_home(fresh_home, folder / "home")
        work_in(patch, world, folder / "home")
        run = run_in(folder / "home", folder / "run")
        base = pull.pull.fn(run)
        planned = plan.make_plan.fn(run, base)
        profiled = profile.profile.fn(run, planned, base)
        candidate = step.unlearn.fn(run, planned, base, profiled)
        measured = measure.measure.fn(run, planned, base, candidate)
        verdict = gate.gate.fn(run, planned, measured)
    return Finished(folder / "home", run, planned, base, profiled, candidate, measured, verdict)


@pytest.fixture
def own_run(workspace: Workspace, finished: Finished, tmp_path: Path) -> Run:
    """The finished run, in a workspace and a copy of the run folder that are this test's own."""
    shutil.copytree(finished.run.folder, tmp_path / "run")
    return replace(finished.run, home=str(workspace.home), folder=str(tmp_path / "run"))


@pytest.fixture
def plan_of(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """plan_of(base_version="1", validate=False, **fields of Run): a plan made in a fresh run folder."""
    count = iter(range(1000))

    def make(base_version: str = "1", validate: bool = False, **changes: Any) -> Plan:
        run = run_in(workspace.home, tmp_path / f"run-{next(count)}", **changes)
        tags = open_registry(workspace).describe(MODEL, base_version).tags
        base = ModelHandle(MODEL, base_version, "clip", "", tags["weights_sha256"], tags["manifest_sha256"])
        with monkeypatch.context() as patch:
            if not validate:  # a second per plan, and the room `data` tests it
                patch.setattr("data.validate.validate_sets", lambda folders: None)
            return plan.make_plan.fn(run, base)

    return make


@pytest.fixture
def erase(workspace: Workspace, world: World, finished: Finished, tmp_path: Path) -> Callable[..., str]:
    """erase(base version, concept id, **fields of Plan): a version that erased it, as ledger and tags say."""

    def made(base: str, erased: str, verdict: Verdict | None = None, **planned: Any) -> str:
        ledger = open_ledger(workspace)
        request = ledger.add(NewRequest(MODEL, "object", (erased,), FORGET))
        with ledger.claim(request.id) as claim:
            claim.bind_plan(replace(finished.plan, request_id=request.id, targets=(erased,), **planned))
            claim.finish("passed", Evidence(verdict=to_plain(verdict or finished.verdict)))
        folder = tmp_path / request.id
        shutil.copytree(world.model, folder)
        write_manifest(folder)
        tags = {"family": "clip", "base_version": base}
        return open_registry(workspace).register_model(
            folder, MODEL, request_id=request.id, plan_sha256="1" * 64, tags=tags
        )

    return made
