"""Gate: measurements against the bounds of the gate file, with both self-checks."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from contracts.errors import DigestMismatch
from contracts.values import Measurements, Plan, Verdict
from tasks.plan import GATES_FILE
from tasks.run import Run

DOCS_FOLDER = "data-docs"


@task(name="gate", cache_policy=NO_CACHE)
def gate(run: Run, plan: Plan, measurements: Measurements) -> Verdict:
    """The verdict; Great Expectations' pages go beside the report.

    Raises:
        InputError: the gate file is malformed.
        DigestMismatch: it is not the file that the plan was made with.
    """
    from gates.data_docs import write_data_docs
    from gates.runner import run_suite
    from gates.suite import load_suite

    suite = load_suite(run.path(GATES_FILE))
    if suite.sha256 != plan.gates_sha256:
        raise DigestMismatch(f"the gate file has sha256 {suite.sha256}, planned was {plan.gates_sha256}")
    decided = run_suite(suite, measurements, plan.promised)
    write_data_docs(decided.validations, run.workspace.reports / run.request_id / DOCS_FOLDER)
    return decided.verdict
