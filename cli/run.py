"""`slugline run` and `slugline sweep`."""

import click

from cli.output import as_json, exit_by_verdicts, print_json, print_run


@click.command()
@click.argument("request_id")
@as_json
def run(request_id: str, as_json: bool) -> None:
    """Carry one request through: pull, plan, profile, unlearn, measure, gate, publish, report.

    Running a request again after an interruption continues it; a decided request does not run again.
    """
    from cli.private_server import prefect_api
    from intake.requests import check_request_id

    check_request_id(request_id)  # Prefect stores parameters as they come: a name must not get there
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

    Exits 3 if a gate failed or an erased concept is known again, 4 if evidence was insufficient.
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
    known_again = ["failed" for standing in result["rechecks"] if not standing["still_gone"]]
    if result["errors"] and not known_again:
        raise click.exceptions.Exit(2)
    exit_by_verdicts([r["verdict"] for r in result["runs"]] + known_again)
