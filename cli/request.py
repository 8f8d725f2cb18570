"""`slugline request`: the ledger of deletion requests."""

import json
from typing import Any

import click

from cli.output import as_json, print_json
from contracts.canonical import to_plain
from contracts.errors import InputError
from intake.workspace import Workspace

TOWERS = {
    "text": ["text"],
    "vision": ["vision"],
    "both": ["vision", "text"],
    "language": ["language"],
}


@click.group()
def request() -> None:
    """Add, list, show and cancel deletion requests.

    The ledger holds opaque ids, digests and paths; a name given on the command line goes no further than
    this process.
    """


@request.command()
@click.option("--model", required=True, help="Registered model, as in slugline.yaml.")
@click.option("--forget-set", required=True, help="Path of the DVC-tracked forget set.")
@click.option("--axis", type=click.Choice(["object", "style"]), default="object", show_default=True)
@click.option(
    "--concept",
    "names",
    multiple=True,
    help="What to forget, by name or id; repeat for several.  "
    "[default: everything the forget set is labelled with]",
)
@click.option(
    "--tower",
    type=click.Choice(list(TOWERS)),
    help="Which tower may be edited: `text` forgets the name, `vision` also what is seen; `language`, of a "
    "vision-language model, what it says.  "
    "[default: slugline.yaml's]",
)
@click.option("--method", help="Unlearning method, for example slug.  [default: slugline.yaml's]")
@click.option(
    "--edit-from",
    type=click.Choice(["original", "champion"]),
    help="Where the edit begins if things were erased before: `original` erases them and this anew, by one "
    "edit of the imported version, if they had one axis and method; `champion` goes on from where it is.  "
    "[default: slugline.yaml's]",
)
@click.option("--revision", help="Git revision of the sets.  [default: HEAD]")
@click.option("--key", help="Idempotency key: the same request under the same key is added once.")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=JSON",
    help="Override, for example method.search_steps=12, gates=gates/suites/mine.yaml, seed=1.",
)
@click.option("--emit", is_flag=True, help="Also emit the event that starts the deployed flow.")
@as_json
def add(
    model: str,
    forget_set: str,
    axis: Any,
    names: tuple[str, ...],
    tower: str | None,
    method: str | None,
    edit_from: str | None,
    revision: str | None,
    key: str | None,
    options: tuple[str, ...],
    emit: bool,
    as_json: bool,
) -> None:
    """Ask for something to be forgotten.

    \b
    slugline request add --model emoji-clip --forget-set data/sets/forget-fruit
    slugline run req-0123456789abcdef
    """
    from tasks.requests import announce, take_in

    if tower is not None:
        options = (*options, f"method.towers={json.dumps(TOWERS[tower])}")
    if method is not None:
        options = (*options, f"method.name={json.dumps(method)}")
    if edit_from is not None:
        options = (*options, f"edit_from={edit_from}")
    added = take_in(Workspace.open(), model, axis, forget_set, names, parse_options(options), key, revision)
    if emit:
        announce(added.id)
    if as_json:
        print_json(to_plain(added))
    else:
        click.echo(added.id)


@request.command("list")
@click.option("--model", help="Only this model's.")
@click.option("--state", "states", multiple=True, help="Only in these states.")
@as_json
def list_(model: str | None, states: tuple[Any, ...], as_json: bool) -> None:
    """List requests, the most urgent first."""
    from tasks.stores import open_ledger

    found = open_ledger(Workspace.open()).list(model, states)
    if as_json:
        print_json([to_plain(r) for r in found])
        return
    for one in found:
        version = one.evidence.version or "-"
        click.echo(f"{one.id}  {one.state:<12}  due {one.deadline:%Y-%m-%d}  {one.model}  version {version}")


@request.command()
@click.argument("request_id")
def show(request_id: str) -> None:
    """Show one request with its verdict and evidence, as JSON."""
    from tasks.stores import open_ledger

    print_json(to_plain(open_ledger(Workspace.open()).get(request_id)))


@request.command()
@click.argument("request_id")
def cancel(request_id: str) -> None:
    """Cancel a request that has not been decided."""
    from tasks.stores import open_ledger

    click.echo(f"{open_ledger(Workspace.open()).cancel(request_id).id} cancelled")


def parse_options(given: tuple[str, ...]) -> dict[str, Any]:
    """`method.search_steps=12` to {"method": {"search_steps": 12}}; a value that is no JSON is a word.

    Raises:
        InputError: an option has no `=`, or is both a value and a group of values.
    """
    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"option {text!r} is not NAME=JSON")
        *parents, last = name.split(".")
        level = options
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise InputError(f"option {text!r} contradicts an earlier one")
        try:
            level[last] = json.loads(value)
        except json.JSONDecodeError:
            level[last] = value
    return options
