"""Processes that work in the small world: attempts at the demo's path that may be killed, and commands.

They are forked from a server that has imported everything slow, so that they cost what the work costs.
Product code has no hooks for this: the killer wraps the function it is told.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

PRELOADED = (
    "cli.demo", "flows.unlearn", "mlflow", "open_clip", "great_expectations", "matplotlib.figure",
    "dvc.repo", "data.pins", "data.validate", "gates.runner", "gates.data_docs", "report.html",
    "registry.promotion", "unlearning.methods.slug", "unlearning.families.clip",
)  # fmt: skip


@dataclass(frozen=True)
class Death:
    """SIGKILL when the `call`-th call of `module:name` is entered or left."""

    where: str
    moment: Literal["enter", "leave"]
    call: int = 1

    def __str__(self) -> str:
        return f"{self.moment} {self.where} #{self.call}"


@dataclass(frozen=True)
class Attempt:
    """The demo's path: import the base model, take the requests in, carry them through."""

    home: Path
    repo: Path
    model: Path
    name: str
    requests: tuple[str, ...]

    def run(self, death: Death | None = None) -> int:
        """Exit code of the process: 0, 1 after an exception, or -9 if it was killed."""
        return join(_start(_carry_out, self, death))

    def command(self, *arguments: str, output: Path) -> Any:
        """The running process of a `slugline` command in this workspace; what it prints goes to `output`."""
        return _start(_command, self, arguments, output)


def join(process: Any) -> int:
    """Wait for a process; its exit code."""
    process.join(timeout=240)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} did not end")
    return int(process.exitcode)


def _start(target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _enter(attempt: Attempt) -> None:
    os.environ.update(
        SLUGLINE_HOME=str(attempt.home),
        SLUGLINE_REPO=str(attempt.repo),
        SLUGLINE_THREADS="1",
        DVC_SITE_CACHE_DIR=str(attempt.home / "dvc-site-cache"),
    )


def _command(attempt: Attempt, arguments: tuple[str, ...], output: Path) -> None:
    from cli.main import main

    _enter(attempt)
    sys.argv = ["slugline", *arguments]
    with output.open("w") as sys.stdout:
        sys.stderr = sys.stdout
        main()


def _carry_out(attempt: Attempt, death: Death | None) -> None:
    _enter(attempt)
    from cli import demo
    from intake.workspace import Workspace

    demo._reference_model = lambda path, scratch: attempt.model
    shown = demo.Demo(attempt.name, "", tuple((path, "object") for path in attempt.requests))
    if death is not None:
        _arm(death)
    demo.carry_out(Workspace.open(), shown)


def _arm(death: Death) -> None:
    module, _, name = death.where.partition(":")
    owner = importlib.import_module(module)
    *parents, last = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original: Callable[..., Any] = getattr(owner, last)
    calls = count(1)

    def mortal(*args: Any, **kwargs: Any) -> Any:
        its_turn = next(calls) == death.call
        if its_turn and death.moment == "enter":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if its_turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, last, mortal)
