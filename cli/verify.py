"""`slugline verify`: a certificate against itself and the weights, with nothing but the standard library."""

from pathlib import Path

import click

from cli.output import as_json, exit_by_verdicts, print_json
from contracts.canonical import to_plain
from contracts.errors import EXIT_BAD_INPUT
from evidence.verify import verify as check_certificate


@click.command()
@click.argument("certificate", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The weights file it is said to be about.",
)
@click.option(
    "--model",
    "model_folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The whole model folder: its manifest is checked too.",
)
@click.option(
    "--expected-sha256",
    help="Digest of the certificate from a place its writer cannot change: "
    "the registry's tag certificate_sha256.",
)
@as_json
def verify(
    certificate: Path,
    weights: Path | None,
    model_folder: Path | None,
    expected_sha256: str | None,
    as_json: bool,
) -> None:
    """Check a certificate offline.

    Every bound is recomputed from its counts, every gate decided again, every digest compared.  Exits 0 if
    all of it holds and the verdict is "passed", 3 or 4 if it holds and the verdict is another, 2 if
    anything does not hold or no weights were given to hold it against.
    """
    report = check_certificate(
        certificate, weights=weights, model_folder=model_folder, expected_sha256=expected_sha256
    )
    if as_json:
        print_json({"ok": report.ok, **to_plain(report)})
    else:
        for check in report.checks:
            click.echo(f"{check.result:<12} {check.name}: {check.explanation}")
        click.echo(f"{'sound' if report.ok else 'NOT SOUND'}; verdict: {report.decision}")
    if not report.ok:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)
    exit_by_verdicts([str(report.decision)])
