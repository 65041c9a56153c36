"""The command line: thin. Each file is one command; errors become one line and a status."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperArgument

from airtune.cli import (
    compare,
    costs,
    deploy,
    methods,
    plan,
    profile,
    report,
    run,
    scenarios,
    study,
    trace,
)
from airtune.cli.ending import Command, Commands, ended

app = typer.Typer(
    name="airtune",
    cls=Commands,
    help="Low-latency federated fine-tuning of language models over wireless networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from airtune import __version__

        typer.echo(f"airtune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Low-latency federated fine-tuning of language models over wireless networks."""


app.command("run", cls=Command)(run.run)
app.command("plan", cls=Command)(plan.plan)
app.command("compare", cls=Command)(compare.compare)
app.command("costs", cls=Command)(costs.costs)
app.command("report", cls=Command)(report.report)
app.command("profile", cls=Command)(profile.profile)
app.command("trace", cls=Command)(trace.trace)
app.command("methods", cls=Command)(methods.methods)
app.add_typer(study.app, name="study")
app.add_typer(scenarios.app, name="scenarios")
app.add_typer(deploy.app, name="deploy")


_typer_argument = TyperArgument.__init__


def _argument_with_help(self: TyperArgument, *, help: str | None = None, **options: Any) -> None:
    _typer_argument(self, help=help, **options)
    self.help = help


# Click 8.4 gave arguments a help of their own, and so erases what Typer 0.20 set just before
# (Flower 1.41 admits no newer Typer).
TyperArgument.__init__ = _argument_with_help  # type: ignore[method-assign]


def main() -> None:
    """Run the command line; see `airtune.cli.ending` for the exit status."""
    # OpenMP's threads otherwise spin at every barrier, which on a machine that does anything
    # else besides makes a training step several times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    status = ended(app)
    if status:
        sys.exit(status)
