"""What commands print: JSON for machines, one aligned line per fact for people."""

import json
from typing import Any, NoReturn

import click

from contracts.errors import EXIT_GATE_FAILED, EXIT_INSUFFICIENT_EVIDENCE, EXIT_OK

EXIT_CODES = {
    "passed": EXIT_OK,
    "failed": EXIT_GATE_FAILED,
    "insufficient evidence": EXIT_INSUFFICIENT_EVIDENCE,
}

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
    edits = ", ".join(f"{e['layer']} ({e['tower']}, step {e['step_size']:.3g})" for e in run["edited"])
    verdict = click.style(run["verdict"], bold=True, fg="green" if run["verdict"] == "passed" else "red")
    moved = "is now champion" if run["promoted"] else "registered, champion unchanged"
    click.echo(f"{run['request']}: {verdict}: version {run['version']} {moved}")
    click.echo(
        f"  forget  FA@1 {percent(forget['fa1_before'])} -> {percent(forget['fa1_after'])}, "
        f"at most {percent(forget['fa1_after_upper95'])} (n = {forget['n']})"
    )
    click.echo(
        f"  retain  TA@1 {percent(retain['ta1_before'])} -> {percent(retain['ta1_after'])}, "
        f"drop at most {percent(retain['drop_upper95'])} (n = {retain['n']})"
    )
    click.echo(f"  edited  {edits}")
    click.echo(f"  report  {run['report']}")
    click.echo(f"  certificate  {run['certificate']}")
