"""The same request, started by two processes at once: one runs it, the other is told so."""

from collections.abc import Callable
from pathlib import Path

from intake.workspace import Workspace
from tasks.requests import take_in
from tasks.stores import open_ledger, open_registry
from tests.system.attempts import Attempt, join
from tests.world import FORGET, MODEL


def test_one_runs_and_the_other_is_refused(
    attempt_in: Callable[[Path], Attempt], workspace: Workspace, tmp_path: Path
) -> None:
    attempt = attempt_in(workspace.home)
    request = take_in(workspace, MODEL, "object", FORGET)
    outputs = [tmp_path / "one", tmp_path / "other"]

    processes = [attempt.command("run", request.id, output=output) for output in outputs]
    codes = [join(process) for process in processes]

    assert sorted(codes) == [0, 2]
    refusal = outputs[codes.index(2)].read_text()
    assert refusal == f"slugline: request {request.id} is being run by another process\n"
    decided = open_ledger(workspace).get(request.id)
    assert (decided.state, decided.attempts) == ("passed", 1)
    assert [v.version for v in open_registry(workspace).versions(MODEL)] == ["1", "2"]
