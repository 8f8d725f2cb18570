"""The command's front door: global options, the list of commands, errors and exit codes."""

import importlib
import logging
import os
import sys
from pathlib import Path

import click

from contracts import environment
from contracts.errors import EXIT_BAD_INPUT, SluglineError

# command -> (module, attribute, help); the module is imported when the command is used.
COMMANDS = {
    "demo": ("cli.demo", "demo", "Watch a trained CLIP forget one thing and one family of things."),
    "request": ("cli.request", "request", "Add, list, show and cancel deletion requests."),
    "run": ("cli.run", "run", "Carry one request from the ledger to a gated, certified version."),
    "sweep": ("cli.run", "sweep", "Run all pending requests of a model and re-check every erasure."),
    "models": ("cli.models", "models", "Import, list, promote and roll back registered models."),
    "sets": ("cli.sets", "sets", "Build DVC-tracked sets, and check them."),
    "verify": ("cli.verify", "verify", "Check a certificate offline, against the weights."),
    "doctor": ("cli.doctor", "doctor", "Say what is installed, reachable and switched off."),
}


class LazyCommands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, its module imported only now."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])


@click.group(cls=LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="Workspace with ledger, registry and reports.  [default: $SLUGLINE_HOME or ./.slugline]",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
@click.version_option(package_name="slugline")
def slugline(home: Path | None, quiet: bool) -> None:
    """Make a production model forget, on evidence.

    A request names what to forget by opaque ids and points at a DVC-tracked forget set.  A run pulls the
    champion from the registry, edits it (for a CLIP one layer, by a closed form or one gradient), measures
    erasure and retained accuracy on drawings nobody trained or searched on, lets the gates decide on
    confidence bounds, and registers the new version with a certificate; only if every gate passed does
    the champion move.

    Exit codes: 0 passed or done · 2 bad input or an unreachable store · 3 a gate failed · 4 insufficient
    evidence.

    \b
    First steps:
      slugline demo                                   watch it happen, in a workspace of its own
      slugline models import --help                   register your own CLIP
      slugline request add --help                     ask for something to be forgotten
    """
    if home is not None:
        os.environ["SLUGLINE_HOME"] = str(home.absolute())
    # Prefect logs the traceback of every failed run, through a handler that other packages' notes go to
    # as well; whoever typed a command wants the one sentence that `main` prints.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    environment.prepare(Path(os.environ.get("SLUGLINE_HOME") or ".slugline").absolute())
    log_to_terminal(logging.WARNING if quiet else logging.INFO)


def log_to_terminal(level: int) -> None:
    """What a run says goes to standard error, so that standard output stays machine-readable."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("slugline")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def main() -> None:
    """Run the command; errors of slugline's own and of the file system become one line and exit code 2."""
    try:
        # Without standalone mode click returns the code of an `Exit` instead of leaving with it.
        sys.exit(slugline(prog_name="slugline", standalone_mode=False))
    except SluglineError as error:
        click.echo(f"slugline: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"slugline: {error.strerror or type(error).__name__}{where}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except click.Abort:
        click.echo("slugline: interrupted; run the same command again to continue", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()
