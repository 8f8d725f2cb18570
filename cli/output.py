"""What commands print: JSON for machines, one aligned line per fact for people."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from contracts.errors import EXIT_GATE_FAILED, EXIT_INSUFFICIENT_EVIDENCE, EXIT_OK
from contracts.metrics import LEVELS, SHORT

EXIT_CODES = {
    "passed": EXIT_OK,
    "failed": EXIT_GATE_FAILED,
    "insufficient evidence": EXIT_INSUFFICIENT_EVIDENCE,
}

RATES = {"fa1": "FA@1", "ta1": "TA@1", **SHORT}
NAMED = 3  # changed tensors that are told by name; the certificate names all

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def print_json(value: Any) -> None:
    """One JSON object, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def exit_by_verdicts(decisions: list[str]) -> NoReturn:
    """Leave with the exit code of the worst verdict."""
    raise click.exceptions.Exit(max((EXIT_CODES[d] for d in decisions), default=EXIT_OK))


def print_run(run: dict[str, Any]) -> None:
    """A run's result in a few lines."""

    def percent(value: float | None) -> str:
        return "not measured" if value is None else f"{100 * value:.1f} %"

    forget, retain = run["forget"], run["retain"]
    forgotten, retained = (_rate_of(side) for side in (forget, retain))
    named = [f"{e['layer']} ({e['tower']}, step {e['step_size']:.3g})" for e in run["edited"]]
    edits = ", ".join(named[:NAMED]) + (f" and {len(named) - NAMED} more" if len(named) > NAMED else "")
    verdict = click.style(run["verdict"], bold=True, fg="green" if run["verdict"] == "passed" else "red")
    moved = "is now champion" if run["promoted"] else "registered, champion unchanged"
    click.echo(f"{run['request']}: {verdict}: version {run['version']} {moved}")
    click.echo(
        f"  forget  {RATES[forgotten]} {percent(forget[f'{forgotten}_before'])} -> "
        f"{percent(forget[f'{forgotten}_after'])}, "
        f"at most {percent(forget[f'{forgotten}_after_upper95'])} (n = {forget['n']})"
    )
    click.echo(
        f"  retain  {RATES[retained]} {percent(retain[f'{retained}_before'])} -> "
        f"{percent(retain[f'{retained}_after'])}, "
        f"drop at most {percent(retain['drop_upper95'])} (n = {retain['n']})"
    )
    for name, level in run["levels"].items():
        metric = name.rpartition(".")[2]
        if metric == "psnr":
            unit = LEVELS[metric]
            click.echo(
                f"  {name:<28} {level['before']:.2f} -> {level['after']:.2f} {unit}, "
                f"loss at most {level['upper95']:.2f} {unit}"
            )
    for gate in run.get("missed", ()):  # results of an earlier version have none
        click.echo(f"  missed  {gate}")
    click.echo(f"  edited  {edits}")
    click.echo(f"  report  {run['report']}")
    click.echo(f"  certificate  {run['certificate']}")


def _rate_of(side: Mapping[str, Any]) -> str:
    """Which rate one side of a result is told by."""
    return next(name.removesuffix("_after") for name in side if name.endswith("_after"))
