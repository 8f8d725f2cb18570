"""What leaves a run: version, certificate, promotion, report; each the same when done twice."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from contracts.errors import DigestMismatch, PromotionConflict
from contracts.values import Plan, RunSeconds
from evidence.manifest import write_manifest
from evidence.verify import verify
from intake.requests import NewRequest
from intake.workspace import Workspace
from registry.store import Registry
from tasks import publish, report
from tasks.publish import Publication
from tasks.run import Run
from tasks.stores import open_ledger, open_registry
from tests.tasks.conftest import STARTED, Finished
from tests.world import FORGET, MODEL, SEEN, SUBJECT, TARGET, UNSEEN

NAMES = (*SEEN, *UNSEEN)


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return open_registry(workspace)


def test_registering_twice_keeps_version_and_certificate(
    own_run: Run, finished: Finished, registry: Registry
) -> None:
    first = finished.publish(own_run)
    certificate = Path(first.certificate).read_bytes()
    Path(first.certificate).unlink()

    second = finished.publish(own_run, started=STARTED + timedelta(hours=1))

    assert second == first
    assert Path(second.certificate).read_bytes() == certificate
    assert [v.version for v in registry.versions(MODEL)] == ["1", "2"]
    assert registry.aliases(MODEL) == {"champion": "1"}
    report = verify(
        Path(first.certificate),
        model_folder=Path(finished.candidate.folder),
        expected_sha256=registry.describe(MODEL, "2").tags["certificate_sha256"],
    )
    assert report.ok


def test_an_attempt_that_died_before_the_certificate_is_finished(
    own_run: Run, finished: Finished, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "attach_certificate", _die)
        with pytest.raises(KeyboardInterrupt):
            finished.publish(own_run)
    assert "certificate_sha256" not in registry.describe(MODEL, "2").tags

    assert finished.publish(own_run).version == "2"
    assert "certificate_sha256" in registry.describe(MODEL, "2").tags


def _die(*_: object) -> None:
    raise KeyboardInterrupt


def test_other_weights_under_the_same_plan_are_refused(
    own_run: Run, finished: Finished, registry: Registry
) -> None:
    finished.publish(own_run)
    other = own_run.path("other")
    shutil.copytree(finished.candidate.folder, other)
    weights = load_file(other / "weights.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, other / "weights.safetensors")
    write_manifest(other)

    with pytest.raises(DigestMismatch, match="other weights"):
        finished.publish(own_run, candidate=replace(finished.candidate, folder=str(other)))
    assert len(registry.versions(MODEL)) == 2


def test_the_registry_is_told_no_name(own_run: Run, finished: Finished, workspace: Workspace) -> None:
    finished.publish(own_run)

    layers = next((workspace.home / "artifacts").rglob("profile/layers.csv")).read_text()
    assert finished.plan.targets[0] in layers
    for file in (workspace.home / "artifacts").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        assert not [n for n in NAMES if n.encode() in content], file.name


@pytest.fixture
def published(own_run: Run, finished: Finished) -> Publication:
    # Whatever the tiny model's verdict: a certificate of "passed" is what promotion asks for.
    assert finished.verdict.decision == "passed"
    return finished.publish(own_run)


def test_promotion_is_from_the_base_version_only(
    own_run: Run, finished: Finished, published: Publication, registry: Registry
) -> None:
    other = replace(finished.plan, base_version="7")

    with pytest.raises(PromotionConflict, match="the champion of shapes is version 1"):
        publish.promote_passed.fn(own_run, other, published.version)
    assert registry.aliases(MODEL) == {"champion": "1"}

    for _ in range(2):  # the second call finds it done
        publish.promote_passed.fn(own_run, finished.plan, published.version)
        assert registry.aliases(MODEL) == {"champion": "2", "previous": "1"}


def test_a_champion_that_was_built_upon_the_version_is_left_alone(
    own_run: Run, finished: Finished, published: Publication, registry: Registry, tmp_path: Path
) -> None:
    """Died behind the promotion; another request was carried through; now the first one runs again."""
    publish.promote_passed.fn(own_run, finished.plan, published.version)
    folder = tmp_path / "three"
    shutil.copytree(finished.candidate.folder, folder)
    tags = {"family": "clip", "base_version": published.version}
    third = registry.register_model(
        folder, MODEL, request_id="req-00000000000000bb", plan_sha256="3" * 64, tags=tags
    )
    registry.set_alias(MODEL, "champion", third)
    registry.set_alias(MODEL, "previous", published.version)

    publish.promote_passed.fn(own_run, finished.plan, published.version)

    assert registry.aliases(MODEL) == {"champion": third, "previous": published.version}


def written(run: Run, finished: Finished, plan: Plan) -> tuple[str, str]:
    """The report's page and its JSON."""
    published = Publication("2", "certificate.json", "0" * 64)
    page = report.write.fn(
        run,
        plan,
        finished.base,
        finished.profiled,
        finished.candidate,
        finished.measured,
        finished.verdict,
        published,
        True,
        RunSeconds(total=1.0),
    )
    return Path(page).read_text(), Path(page).with_suffix(".json").read_text()


def test_the_report_of_public_sets_shows_names_and_pictures(own_run: Run, finished: Finished) -> None:
    page, data = written(own_run, finished, finished.plan)

    assert TARGET in page
    shown = json.loads(data)["retrievals"]
    assert {r["kind"] for r in shown} == {"i2t", "t2i"}
    assert page.count("data:image/png") > len(shown)


def test_the_report_of_a_personal_set_shows_neither(own_run: Run, finished: Finished) -> None:
    sets = tuple(replace(ref, personal=ref.role == "forget") for ref in finished.plan.sets)

    page, data = written(own_run, finished, replace(finished.plan, sets=sets))

    for text in (page, data):
        assert not [n for n in (*NAMES, SUBJECT) if n in text]
        assert FORGET not in text
    assert json.loads(data)["retrievals"] == []


class TestRecheck:
    """A request that passed, measured again on whatever is champion now."""

    @pytest.fixture
    def passed(self, workspace: Workspace, finished: Finished) -> str:
        from contracts.canonical import to_plain
        from intake.requests import Evidence

        ledger = open_ledger(workspace)
        request = ledger.add(NewRequest(MODEL, "object", finished.plan.targets, FORGET))
        with ledger.claim(request.id) as claim:
            claim.bind_plan(replace(finished.plan, device="cuda:7", threads=3))
            claim.finish("passed", Evidence(verdict=to_plain(finished.verdict)))
        return request.id

    def test_a_concept_that_lives_again_is_reported(self, workspace: Workspace, passed: str) -> None:
        """Champion is the untouched model, on a machine without the device that the plan names."""
        from tasks.recheck import recheck

        (standing,) = recheck.fn(MODEL)

        assert (standing.champion, standing.still_gone) == ("1", False)
        assert standing.rates["forget.fa1.after"].hits > standing.rates["forget.fa1.after"].n / 2

    def test_one_that_is_gone_is_not(
        self,
        workspace: Workspace,
        finished: Finished,
        own_run: Run,
        passed: str,
        published: Publication,
    ) -> None:
        from tasks.recheck import recheck

        publish.promote_passed.fn(own_run, finished.plan, published.version)

        (standing,) = recheck.fn(MODEL)

        assert (standing.champion, standing.still_gone) == ("2", True)
        assert standing.rates["forget.fa1.after"] == finished.measured.rates["forget.fa1.after"]
        assert standing.rates["forget.fa5.after"] == finished.measured.rates["forget.fa5.after"]

    def test_nothing_is_pulled_when_nothing_has_passed(self, workspace: Workspace) -> None:
        from tasks.recheck import recheck

        assert recheck.fn("no-such-model") == ()
