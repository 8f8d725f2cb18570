"""A profile shared out over two gloo processes: one run, one result, one error."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.errors import InputError, ProcessEnded
from contracts.values import Method, Plan
from tasks import profile, profile_together
from tasks.machine import processes
from tasks.profile_together import TOLD
from tasks.profiling import GRADIENTS
from tasks.run import Run
from tests.tasks.conftest import Finished
from unlearning.gradients import load_gradients

SLUG = Method(forget_at=2, micro_batch=64, retain_batch=24)
PRECONDITIONED = Method(name="slug-preconditioned", towers=("text",), forget_at=2, micro_batch=64)


@pytest.fixture
def shared(finished: Finished) -> Plan:
    return replace(finished.plan, method=SLUG, processes=2)


@pytest.mark.parametrize("method", [SLUG, PRECONDITIONED])
def test_two_processes_profile_as_one_does(own_run: Run, finished: Finished, method: Method) -> None:
    found, gradients = {}, {}
    for n in (1, 2):
        plan = replace(finished.plan, method=method, processes=n)
        found[n] = profile.profile.fn(own_run, plan, finished.base)
        gradients[n] = load_gradients(own_run.path(GRADIENTS))
        own_run.path(GRADIENTS).unlink()
    assert found[1].scores.keys() == found[2].scores.keys()
    for concept, scores in found[1].scores.items():
        for one, two in zip(scores, found[2].scores[concept], strict=True):
            assert (one.layer, one.tower, one.n_params) == (two.layer, two.tower, two.n_params)
            assert one.importance == pytest.approx(two.importance, rel=1e-4)
    for concept, own in gradients[1].items():
        both = own.keys() & gradients[2][concept].keys()
        assert both  # which layers lie on a front may turn on a last digit, but not all of them
        for layer in both:
            cosine = torch.cosine_similarity(own[layer].flatten(), gradients[2][concept][layer].flatten(), 0)
            assert float(cosine) > 1 - 1e-4, layer


def test_statistics_are_kept_for_the_next_two(own_run: Run, shared: Plan, finished: Finished) -> None:
    told: list[set[str]] = []
    for _ in range(2):
        steps: set[str] = set()
        plan = replace(shared, method=PRECONDITIONED)
        profile_together.profile_together(
            own_run, plan, finished.base, lambda what, *_, steps=steps: steps.add(what)
        )
        told.append(steps)
        own_run.path(TOLD).unlink()
    assert told == [{"retain statistics", "forget gradients"}, {"forget gradients"}]
    assert len(list(own_run.workspace.cache.iterdir())) == 1


def test_an_error_of_theirs_is_the_runs_own(own_run: Run, shared: Plan, finished: Finished) -> None:
    # A batch of two has nothing for the third process, and each of the three knows.
    few = replace(shared, processes=3, method=replace(SLUG, retain_batch=2))
    with pytest.raises(InputError, match="2 retain items to share are too few for 3 processes"):
        profile.profile.fn(own_run, few, finished.base)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ("killed", "one of 2 processes that profile together ended with exit status 1"),
        ("foreign", "one of 2 processes that profile together ended with KeyError; SLUGLINE_PROCESSES=1"),
        ("both", "the retain set is unusable"),
    ],
)
def test_of_an_error_that_is_not_ours_nothing_but_its_class_is_said(
    own_run: Run,
    shared: Plan,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    ends: str,
    said: str,
) -> None:
    monkeypatch.setattr(profile_together, "__name__", "tests.tasks.failing_worker")
    monkeypatch.setenv("FAILING_WORKER", ends)
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("torchelastic_*"))
    with pytest.raises(Exception, match=said) as raised:
        profile.profile.fn(own_run, shared, finished.base)
    assert (type(raised.value) is ProcessEnded) == (ends != "both")
    shown = capfd.readouterr()
    assert "jane doe" not in f"{shown.out}{shown.err}{raised.value}"
    if ends != "killed":
        assert "jane doe" in own_run.path(profile_together.STDERR).read_text()
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("torchelastic_*")) == before


def test_progress_is_passed_on_in_whole_lines(tmp_path: Path) -> None:
    path, told = tmp_path / "told", []
    assert profile_together._pass_on(path, 0, lambda *done: told.append(done)) == 0
    path.write_text("forget gradients\t1\t12\nforget gra")
    assert profile_together._pass_on(path, 0, lambda *done: told.append(done)) == 1
    path.write_text("forget gradients\t1\t12\nforget gradients\t2\t12\n")
    assert profile_together._pass_on(path, 1, lambda *done: told.append(done)) == 2
    assert told == [("forget gradients", 1, 12), ("forget gradients", 2, 12)]


WAITING = """
import sys
from pathlib import Path
from tasks.profile_together import _wait
torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
with open(sys.argv[1] + "/stderr", "w") as stderr:
    logs = ["--log-dir", sys.argv[1] + "/logs"]
    _wait([*torchrun, *logs, "-m", "tests.tasks.waiting_worker", sys.argv[1]], stderr, Path("none"), print)
"""


def test_they_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path)])
    until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert run.poll() is None
    for pid in pids:
        os.kill(pid, 0)  # it is there, and waits
    run.kill()
    run.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds, and fail if it does not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_only_a_method_that_shares_items_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    closed_form = Method(name="uce", towers=("text",))
    monkeypatch.delenv("SLUGLINE_PROCESSES", raising=False)
    assert processes(SLUG) == 1
    monkeypatch.setenv("SLUGLINE_PROCESSES", "4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert processes(SLUG) == processes(PRECONDITIONED) == 4
    assert processes(closed_form) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert processes(closed_form) == 1
    with pytest.raises(InputError, match="SLUGLINE_PROCESSES is 4, but there are 2 GPUs"):
        processes(SLUG)
    monkeypatch.setenv("SLUGLINE_PROCESSES", "none")
    with pytest.raises(InputError, match="SLUGLINE_PROCESSES is 'none', a number above 0 is needed"):
        processes(SLUG)


def test_the_number_is_planned(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUGLINE_PROCESSES", raising=False)
    alone = plan_of()
    monkeypatch.setenv("SLUGLINE_PROCESSES", "2")
    two = plan_of()
    assert (alone.processes, two.processes) == (1, 2)
    with pytest.raises(InputError, match=r"another plan \(processes changed since\)"):
        plan_of(plan=alone)
