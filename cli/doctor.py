"""`slugline doctor`: what is installed, reachable and switched off."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import click

from cli.output import as_json, print_json
from contracts.canonical import to_plain
from contracts.environment import QUIET
from contracts.errors import EXIT_BAD_INPUT, SluglineError
from intake.workspace import Workspace

PACKAGES = (
    "prefect", "mlflow", "dvc", "great-expectations", "torch", "torchvision", "open_clip_torch",
    "diffusers", "transformers", "fastapi", "sqlalchemy",
)  # fmt: skip
# Beyond these Prefect 3.8.8 fails silently (cron makes no runs) or refuses requests.
CEILINGS = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ok or not, and what to do if not."""

    what: str
    ok: bool
    detail: str


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """Say what is installed, which device will be used, whether stores answer, whether telemetry is off.

    Exits 2 if anything needs attention.
    """
    workspace = Workspace.open()
    findings = [
        *map(_package, PACKAGES),
        _device(),
        _probe("ledger", lambda: _ledger(workspace)),
        _probe("registry", lambda: _registry(workspace)),
        _probe("repository", _repository),
        _prefect(),
        *(_variable(name, wanted) for name, wanted in QUIET.items()),
        Finding("npm", True, shutil.which("npm") or "not installed: needed only to rebuild the corpus"),
    ]
    if as_json:
        print_json({"ok": all(f.ok for f in findings), "findings": to_plain(findings)})
    else:
        for finding in findings:
            mark = click.style("ok  ", fg="green") if finding.ok else click.style("FIX ", fg="red", bold=True)
            click.echo(f"{mark} {finding.what:<40} {finding.detail}")
    if not all(f.ok for f in findings):
        raise click.exceptions.Exit(EXIT_BAD_INPUT)


def _package(name: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, False, "not installed: run `make demo`, or install requirements.txt")
    ceiling = CEILINGS.get(name)
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if ceiling is not None and numbers >= ceiling:
        return Finding(
            name, False, f"{found}: Prefect 3.8.8 does not work with {'.'.join(map(str, ceiling))}"
        )
    return Finding(name, True, found)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, f"cuda: {torch.cuda.get_device_name(0)}")
    return Finding("device", True, f"cpu, {os.cpu_count()} cores, Python {sys.version.split()[0]}")


def _probe(what: str, probe: Callable[[], str]) -> Finding:
    try:
        return Finding(what, True, probe())
    except SluglineError as error:
        return Finding(what, False, str(error))


def _ledger(workspace: Workspace) -> str:
    from tasks.stores import open_ledger

    return f"{len(open_ledger(workspace).list())} requests"


def _registry(workspace: Workspace) -> str:
    from tasks.stores import open_registry

    return ", ".join(open_registry(workspace).models()) or "no models yet: `slugline models import --help`"


def _repository() -> str:
    from data.pins import PinnedRepo
    from tasks.house import repository

    repo = repository()
    with PinnedRepo(repo) as pinned:
        return f"{repo.name} at {pinned.revision[:12]}"


def _prefect() -> Finding:
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return Finding("prefect", True, "no PREFECT_API_URL: each command runs its own server")
    import httpx

    try:
        httpx.get(f"{url.rstrip('/')}/health", timeout=5).raise_for_status()
    except httpx.HTTPError as error:
        return Finding(
            "prefect", False, f"the API at PREFECT_API_URL does not answer: {type(error).__name__}"
        )
    return Finding("prefect", True, "the API answers")


def _variable(name: str, wanted: str) -> Finding:
    found = os.environ.get(name)
    return Finding(name, found == wanted, f"{found}" if found == wanted else f"{found}, should be {wanted}")
