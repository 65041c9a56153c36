"""How a command ends: its exit status, and the one line that says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
from typer.core import TyperCommand, TyperGroup

from airtune.cli.output import lost_output, steady_streams
from airtune.errors import InputError, RunError

INTERRUPTED = 130


class Interrupted(Exception):
    """Ctrl-C ended the command; the message says what was kept and how to go on."""


def kept(folder: Path, how: str = "the same command and --resume") -> str:
    """Say what an interrupted run has recorded in its folder, and how to go on."""
    from airtune.record import read_record

    try:
        record = read_record(folder)
    except InputError:
        return "interrupted before anything was recorded"
    done, planned = len(record.rounds), record.scenario.get("rounds")
    what = f"{done} of {planned} rounds are kept" if done else "no round had ended"
    return f"interrupted: {what} in '{folder}'; go on with {how}"


class Commands(TyperGroup):
    """The commands; Ctrl-C in one of them is not swallowed by Typer, which says nothing."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("interrupted") from None


class Command(TyperCommand):
    """A command that refuses an option given twice where only the last would count."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; raises `InputError` for one that is there twice."""
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        for option in order:
            if not isinstance(option, click.Option) or option.multiple or option.is_flag:
                continue
            if (count := order.count(option)) > 1:
                raise InputError(
                    f"{option.opts[0]} was given {count} times and only one counts: give it once"
                )
        return super().parse_args(ctx, args)


def ended(command: Callable[[], object]) -> int:
    """Run the command line and return its status.

    0; 2 for what the user can correct; 1 for a failed run or lost output; 130 after Ctrl-C.
    """
    with steady_streams() as stdout:
        status = _status(command)
        sys.stdout.flush()
        lost = lost_output(stdout)
        if lost is not None:
            _say(f"standard output could not be written: {lost}; the command itself went on")
        return status or int(lost is not None)


def _status(command: Callable[[], object]) -> int:
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except InputError as error:
        return _said(str(error), 2)
    except RunError as error:
        return _said(str(error), 1)
    except Interrupted as end:
        return _said(str(end), INTERRUPTED)
    except KeyboardInterrupt:
        return _said("interrupted", INTERRUPTED)
    return 0


def _said(message: str, status: int) -> int:
    _say(message)
    return status


def _say(message: str) -> None:
    print(f"airtune: {' '.join(message.split())}", file=sys.stderr, flush=True)
