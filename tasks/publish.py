"""Publish: register the candidate, certify it, and move the champion if and only if it passed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.errors import ModelError
from contracts.values import Candidate, Measurements, ModelHandle, Plan, Verdict
from tasks.run import Run
from tasks.stores import open_promoter, open_registry

if TYPE_CHECKING:
    from registry.store import Registry
    from registry.versions import VersionInfo

CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Publication:
    """What the registry holds now: the version and its certificate."""

    version: str
    certificate: str
    certificate_sha256: str


@task(name="register", cache_policy=NO_CACHE)
def register(
    run: Run,
    plan: Plan,
    base: ModelHandle,
    candidate: Candidate,
    measurements: Measurements,
    verdict: Verdict,
    started_at: datetime,
    profile_plot: str,
) -> Publication:
    """Register the candidate and attach its certificate, whatever the verdict; no alias moves.

    A second attempt finds the version and the certificate of the first and keeps both.

    Raises:
        DigestMismatch: the same plan led to other weights before.
        StoreUnreachable: the registry does not answer.
    """
    from evidence import certificate
    from evidence.manifest import check_manifest

    registry = open_registry(run.workspace)
    folder = Path(candidate.folder)
    manifest = check_manifest(folder)
    version = registry.register_model(
        folder,
        plan.model,
        request_id=run.request_id,
        plan_sha256=plan.sha256,
        tags={
            "family": base.family,
            "base_version": plan.base_version,
            "verdict": verdict.decision,
        },
        metrics=_metrics(measurements),
        artifacts={"profile/profile.png": Path(profile_plot), "profile/layers.csv": run.path("layers.csv")},
    )
    kept = run.workspace.evidence / run.request_id / CERTIFICATE
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    standing = _standing_certificate(registry, registry.describe(plan.model, version), run.path("standing"))
    if standing is None:
        statement = certificate.build(
            plan=plan,
            base=base,
            candidate=candidate,
            candidate_manifest_sha256=manifest.sha256,
            measurements=measurements,
            verdict=verdict,
            started_at=started_at,
            finished_at=datetime.now(UTC),
        )
        certificate.write(statement, kept)
    else:
        shutil.copyfile(standing, kept)
    sha256 = registry.attach_certificate(plan.model, version, kept)
    return Publication(version, str(kept), sha256)


@task(name="promote", cache_policy=NO_CACHE)
def promote_passed(run: Run, plan: Plan, version: str) -> None:
    """Move the champion from the plan's base version to the certified one.

    After an attempt that died behind the move, another request may have built upon it: the champion
    then carries this request's erasure already, and nothing moves.

    Raises:
        PromotionConflict: the champion is no longer the base version.
        EvidenceError: the version has no valid certificate for exactly its weights.
    """
    from registry.soundness import erased_by
    from registry.versions import CHAMPION

    promoter, registry = open_promoter(run.workspace), open_registry(run.workspace)
    promoter.reconcile(plan.model)
    champion = registry.describe(plan.model, CHAMPION)
    if champion.version != version and run.request_id in erased_by(registry, champion):
        return
    promoter.promote(
        plan.model, version, expect_champion=plan.base_version, scratch=run.path("promotion"), check=loads
    )


def loads(handle: ModelHandle) -> None:
    """The smoke test before an alias moves: the registry's own bytes load and give finite outputs.

    Raises:
        ModelError: they do not.
    """
    from tasks.families import family_tasks, load

    model = load(handle.family, Path(handle.folder))
    try:
        family_tasks(handle.family).check(model)
    except ModelError as error:
        raise ModelError(f"version {handle.version} of {handle.name}: {error}") from None


def _standing_certificate(registry: Registry, info: VersionInfo, scratch: Path) -> Path | None:
    from registry.store import CERTIFICATE_FILE
    from registry.versions import CERTIFICATE as CERTIFICATE_TAG

    if CERTIFICATE_TAG not in info.tags:
        return None
    return registry.download(info, CERTIFICATE_FILE, scratch)


def _metrics(measurements: Measurements) -> dict[str, float]:
    """The headline figures for MLflow; single neighbours stay in the certificate."""
    figures = {f"{name}.estimate": rate.estimate for name, rate in measurements.rates.items()}
    figures |= {f"{name}.drop": drop.estimate for name, drop in measurements.drops.items()}
    figures |= {f"{name}.loss": level.loss for name, level in measurements.levels.items()}
    return {name: value for name, value in figures.items() if not name.startswith("neighbour.")}
