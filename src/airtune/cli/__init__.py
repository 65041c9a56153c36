"""The command line: thin. Each file is one command; errors become one line and a status."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperArgument

from airtune.cli import compare, costs, deploy, methods, plan, profile, report, run, scenarios
from airtune.errors import InputError, RunError

app = typer.Typer(
    name="airtune",
    help="Low-latency federated fine-tuning of language models over wireless networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("compare")(compare.compare)
app.command("costs")(costs.costs)
app.command("report")(report.report)
app.command("profile")(profile.profile)
app.command("methods")(methods.methods)
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
    """Run the command line; status 0, 2 for what the user can mend, 1 for a failed run."""
    # OpenMP's threads otherwise spin at every barrier, which on a machine that does anything
    # else besides makes a training step several times slower. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except InputError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted; what was recorded is kept, go on with --resume", 130)
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: that is its right.
        sys.stderr.close()
        sys.exit(0)


def _fail(message: str, status: int) -> None:
    print(f"airtune: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
