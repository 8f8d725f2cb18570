"""A profile shared out over two gloo processes: one run, one result, one error."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracts.errors import InputError, ModelError
from contracts.values import Method, Plan
from tasks import profile, profile_together
from tasks.plan import processes
from tasks.profile_together import ERROR, TOLD
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
        for layer in own.keys() & gradients[2][concept].keys():
            cosine = torch.cosine_similarity(own[layer].flatten(), gradients[2][concept][layer].flatten(), 0)
            assert float(cosine) > 1 - 1e-4, layer
    # Of what one process measures and keeps, the other keeps nothing a second time.
    assert len(list(own_run.workspace.cache.glob("*"))) == (2 if method == PRECONDITIONED else 0)


def test_what_they_tell_is_told_and_what_an_attempt_before_left_is_not_believed(
    own_run: Run, shared: Plan, finished: Finished
) -> None:
    own_run.path(ERROR.format(0)).write_text(json.dumps({"error": "ModelError", "message": "stale"}))
    own_run.path(TOLD).write_text("stale\t1\t1\n")
    told: list[tuple[str, int, int]] = []
    found = profile_together.profile_together(own_run, shared, finished.base, lambda *done: told.append(done))
    assert found.scores
    # The first process tells for all.
    assert {what for what, _, _ in told} == {"retain gradient", "forget gradients"}
    assert len(told) == len(own_run.path(TOLD).read_text().splitlines())


def test_an_error_of_theirs_is_the_runs_own(own_run: Run, shared: Plan, finished: Finished) -> None:
    # A batch of two has nothing for the third process, and each of the three knows.
    few = replace(shared, processes=3, method=replace(SLUG, retain_batch=2))
    with pytest.raises(InputError, match="2 retain items to share are too few for 3 processes"):
        profile.profile.fn(own_run, few, finished.base)


def test_a_process_that_is_killed_is_an_error_and_not_a_result(
    own_run: Run,
    shared: Plan,
    finished: Finished,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(profile_together, "__name__", "tests.tasks.killed_worker")
    with pytest.raises(ModelError, match="one of 2 processes that profile together ended with status 1"):
        profile.profile.fn(own_run, shared, finished.base)
    assert "SIGKILL" in capsys.readouterr().err


def test_only_a_method_that_shares_items_is_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUGLINE_PROCESSES", raising=False)
    assert processes(SLUG) == 1
    monkeypatch.setenv("SLUGLINE_PROCESSES", "4")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert processes(SLUG) == processes(PRECONDITIONED) == 4
    assert processes(Method(name="uce", towers=("text",))) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="SLUGLINE_PROCESSES is 4, but there are 2 GPUs"):
        processes(SLUG)
    monkeypatch.setenv("SLUGLINE_PROCESSES", "none")
    with pytest.raises(InputError, match="SLUGLINE_PROCESSES is 'none', a number above 0 is needed"):
        processes(SLUG)


WAITING = """
import subprocess, sys
from pathlib import Path
from tasks.profile_together import _wait
child = "import os, sys; from tasks.profile_together import _end_with_the_run as end; " \\
    "print(os.getpid(), flush=True); end()"
with open(sys.argv[1], "w") as stream:
    _wait([sys.executable, "-c", child], stream, Path("nothing"), print)
"""


def test_they_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    run = subprocess.Popen([sys.executable, "-c", WAITING, str(told)])
    until(lambda: told.exists() and told.read_text().endswith("\n"))
    pid = int(told.read_text())
    assert run.poll() is None
    os.kill(pid, 0)  # it is there, and waits
    run.kill()
    run.wait()
    until(lambda: not Path(f"/proc/{pid}").exists())


def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds, and fail if it does not."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
