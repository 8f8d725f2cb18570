"""`slugline sets`: build and check DVC-tracked sets."""

from pathlib import Path
from typing import Any

import click

from cli.output import as_json, print_json
from contracts.canonical import to_plain
from contracts.values import ROLES


@click.group()
def sets() -> None:
    """Build DVC-tracked sets, and check them."""


@sets.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the set is for.")
@click.option("--image-column", default="image", show_default=True, help="Column with the image path.")
@click.option(
    "--caption-column", default="caption", show_default=True, help="Column or JSON key with the caption."
)
@click.option("--caption", help="Caption of every row that has none of its own.")
@click.option("--concept", help="The concept all images show, by name or id.")
@click.option("--object-column", help="Column or JSON key with each row's concept, by name or id.")
@click.option("--style-column", help="Column or JSON key with each row's style, by name or id.")
@click.option(
    "--views", default=1, show_default=True, help="Items per image: as drawn, and random views of it."
)
@click.option("--public", is_flag=True, help="Nobody is shown or named: reports may show names and pictures.")
@click.option("--licence", default="unstated", show_default=True)
@as_json
def add(source: Path, out: Path, role: Any, public: bool, as_json: bool, **options: Any) -> None:
    """Build a set from SOURCE at OUT and put it under DVC; commit the .dvc file to pin it.

    SOURCE is a folder of images (captions in .txt files of the same name), a .csv, .jsonl or .parquet table
    of image paths and captions, or a webdataset .tar.  Sets are personal unless --public says otherwise.
    """
    from data.adding import add_set
    from intake.workspace import Workspace

    Workspace.open()  # DVC makes its site cache inside, and would make the folder for everybody
    summary = add_set(source, out, role, personal=not public, **options)
    if as_json:
        print_json(to_plain(summary))
    else:
        ignored = out.parent / ".gitignore"  # by which git leaves the images alone, in every clone
        click.echo(f"{out}: {summary.n_items} items of {summary.n_drawings} images")
        click.echo(f"now commit {out}.dvc and {ignored}")


@sets.command()
@click.argument(
    "folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@as_json
def check(folders: tuple[Path, ...], as_json: bool) -> None:
    """Check set folders, each by itself and against each other: no item may stand in two."""
    from contracts.errors import InputError
    from data.layout import read_summary
    from data.validate import validate_sets

    by_role = {read_summary(folder).role: folder for folder in folders}
    if len(by_role) != len(folders):
        raise InputError("give at most one set of each role")
    report = validate_sets(by_role)
    if as_json:
        print_json(to_plain(report))
    else:
        for one in report.sets:
            click.echo(
                f"{one.role:<8} {one.n_items} items, {one.n_drawings} drawings, sha256 {one.items_sha256}"
            )
