"""`slugline demo`: two requests on a reference model, end to end, in a workspace of its own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.output import as_json, print_json, print_run
from contracts import environment
from contracts.values import Axis
from intake.workspace import Workspace


@dataclass(frozen=True)
class Demo:
    """A reference model, where its folder is tracked, and forget sets; all else stands in slugline.yaml."""

    model: str
    path: str
    requests: tuple[tuple[str, Axis], ...]


DEMOS = {
    # One thing, then a family of things at once.
    "clip": Demo(
        "emoji-clip",
        "data/models/reference",
        (("data/sets/forget-bullseye", "object"), ("data/sets/forget-fruit", "object")),
    ),
    # A degradation that stands apart, then one that shares most with what is kept.
    "restoration": Demo(
        "photo-restorer",
        "data/models-restoration/restorer",
        (("data/sets/forget-haze", "object"), ("data/sets/forget-rain", "object")),
    ),
    # The names of the first demo's things, in the answers of a model over the vision tower of its CLIP.
    "vlm": Demo(
        "emoji-vlm",
        "data/models/vlm",
        (("data/sets/forget-bullseye", "object"), ("data/sets/forget-fruit", "object")),
    ),
    # A thing, then the hand that draws things.
    "diffusion": Demo(
        "emoji-painter",
        "data/models/diffusion",
        (("data/sets/forget-drawn-bullseye", "object"), ("data/sets/forget-drawn-noto", "style")),
    ),
}
KEY = "demo"


@click.command()
@click.option("--family", type=click.Choice(tuple(DEMOS)), default="clip", show_default=True)
@click.option(
    "--workspace",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the demo keeps its ledger, registry and reports. [default: .slugline/demo/COMMIT]",
)
@as_json
def demo(family: str, workspace: Path | None, as_json: bool) -> None:
    """Watch a trained model forget, on evidence: a CLIP things, a photo restorer haze and rain, a painter a
    thing and a hand, a vision-language model the names of things.

    The reference model and its sets come from the DVC remote inside the repository; nothing is fetched from
    anywhere else.  Interrupted, it continues; finished, it shows the results again.  A verdict "failed" is
    a result like any other: the champion then stays where it was.
    """
    home = (workspace or _of_this_commit()).absolute()
    os.environ["SLUGLINE_HOME"] = str(home)
    os.environ["PREFECT_HOME"] = str(home / "prefect")
    environment.prepare(home)
    runs = carry_out(Workspace.open(), DEMOS[family])
    if as_json:
        print_json({"runs": runs})
        return
    for run in runs:
        click.echo()
        print_run(run)


def _of_this_commit() -> Path:
    """Other sets, rules or weights are another demo: what an older commit forgot stays forgotten there."""
    from dulwich.errors import NotGitRepository
    from dulwich.repo import Repo

    from contracts.errors import InputError
    from tasks.house import repository

    try:
        commit = Repo.discover(str(repository())).head().decode()
    except (NotGitRepository, KeyError):
        raise InputError("the demo reads its sets at a git commit, and here is none") from None
    return Path(".slugline/demo") / commit[:12]


def carry_out(workspace: Workspace, shown: Demo) -> list[dict[str, Any]]:
    """Register the reference model and carry both requests through; results in order."""
    from cli.private_server import prefect_api

    with prefect_api() as api:
        from tasks.log import say
        from tasks.models import import_model
        from tasks.requests import take_in
        from tasks.results import decided_result

        with workspace.run_folder("demo") as scratch:
            folder = _reference_model(shown.path, scratch)
            _, version = import_model(workspace, folder, shown.model)
        say(f"{shown.model} version {version} registered")
        requests = [
            take_in(workspace, shown.model, axis, path, idempotency_key=KEY).id
            for path, axis in shown.requests
        ]
        from flows.unlearn import unlearn

        api.wait()
        return [decided_result(workspace, request) or unlearn(request) for request in requests]


def _reference_model(path: str, scratch: Path) -> Path:
    from data.pins import PinnedRepo
    from tasks.house import repository

    folder = scratch / "reference"
    with PinnedRepo(repository()) as pinned:
        pinned.fetch_path(path, folder)
    return folder
