"""`slugline run` and `slugline sweep`."""

import click

from cli.output import as_json, exit_by_verdicts, print_json, print_run
from contracts.errors import EXIT_BAD_INPUT


@click.command()
@click.argument("request_id")
@as_json
def run(request_id: str, as_json: bool) -> None:
    """Carry one request through: pull, plan, profile, unlearn, measure, gate, publish, report.

    Running a request again after an interruption continues it; of a decided one the result is shown again.
    """
    from cli.private_server import prefect_api
    from intake.requests import check_request_id
    from intake.workspace import Workspace
    from tasks.results import decided_result

    check_request_id(request_id)  # Prefect stores parameters as they come: a name must not get there
    result = decided_result(Workspace.open(), request_id)
    if result is None:
        with prefect_api() as api:
            from flows.unlearn import unlearn

            api.wait()
            result = unlearn(request_id)
    (print_json if as_json else print_run)(result)
    exit_by_verdicts([result["verdict"]])


@click.command()
@click.option("--model", required=True, help="Registered model.")
@as_json
def sweep(model: str, as_json: bool) -> None:
    """Run all pending requests of a model and re-check everything erased so far on the champion.

    Exits 3 if a gate failed or an erased concept is known again, else 2 if a request ended in an error (it
    stays pending), else 4 if evidence was insufficient.
    """
    from cli.private_server import prefect_api

    with prefect_api() as api:
        from flows.sweep import sweep as flow

        api.wait()
        result = flow(model)
    if as_json:
        print_json(result)
    else:
        for one in result["runs"]:
            print_run(one)
        for request, error in result["errors"].items():
            click.echo(f"{request}: {error}, still pending")
        for standing in result["rechecks"]:
            state = "still gone" if standing["still_gone"] else "KNOWN AGAIN"
            click.echo(f"{standing['request_id']}: {state} in version {standing['champion']}")
    verdicts = [r["verdict"] for r in result["runs"]]
    verdicts += ["failed" for standing in result["rechecks"] if not standing["still_gone"]]
    if result["errors"] and "failed" not in verdicts:
        raise click.exceptions.Exit(EXIT_BAD_INPUT)
    exit_by_verdicts(verdicts)
