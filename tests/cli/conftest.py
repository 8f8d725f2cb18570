"""The command as it is typed: `main()` in this process, with what it prints and its exit code."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cli.main import main


@dataclass(frozen=True)
class Said:
    """Exit code, standard output, and the lines of standard error."""

    code: int
    out: str
    errors: list[str]


Slugline = Callable[..., Said]


@pytest.fixture
def slugline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Slugline:
    """slugline("request", "list"): run the command quietly, so that it says nothing but errors."""

    def run(*arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["slugline", "--quiet", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        code = left.value.code
        return Said(int(code or 0), said.out, said.err.splitlines())

    return run
