"""Progress of a run on the terminal: round, virtual clock, loss and the current client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airtune.cli.ending import Interrupted, kept
from airtune.record import RoundRecord, json_line
from airtune.report.summary import is_left_out
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario


class JsonLines(Observer):
    """Print each round's line of rounds.jsonl; what was lost goes to stderr."""

    def noticed(self, what: str) -> None:
        """Say what the user should know."""
        print(what, file=sys.stderr, flush=True)

    def round_ended(self, record: RoundRecord) -> None:
        """Print the record."""
        print(json.dumps(json.loads(json_line(record))), flush=True)  # ASCII, for any stdout


class Lines(Observer):
    """One plain line a round, where there is no terminal to redraw."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def preparing(self, what: str) -> None:
        """Say what is being prepared."""
        print(what, file=sys.stderr, flush=True)

    def started(self, initial_loss: float | None) -> None:
        """Print the loss before training."""
        if initial_loss is not None:
            print(f"before training: test loss {initial_loss:.4f}", file=sys.stderr, flush=True)

    def round_ended(self, record: RoundRecord) -> None:
        """Print the round's line."""
        print(_line(record, self._rounds), file=sys.stderr, flush=True)


class Live(Lines):
    """A progress bar with the current client under a line for each round that ended."""

    def __init__(self, rounds: int, clients: int) -> None:
        super().__init__(rounds)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[client]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._clients = clients
        self._task = self._progress.add_task("starting", total=rounds * clients, client="")

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def preparing(self, what: str) -> None:
        """Show what is being prepared."""
        self._progress.update(self._task, description=what)

    def started(self, initial_loss: float | None) -> None:
        """Print the loss before training above the bar."""
        if initial_loss is not None:
            self._progress.console.print(f"before training: test loss {initial_loss:.4f}")

    def noticed(self, what: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(what, markup=False, highlight=False)

    def client_started(self, round: int, client: str) -> None:
        """Show which client works."""
        self._progress.update(
            self._task, description=f"round {round}/{self._rounds}", client=client, advance=1
        )

    def round_ended(self, record: RoundRecord) -> None:
        """Print the round's line above the bar."""
        self._progress.update(self._task, completed=record.round * self._clients)
        self._progress.console.print(_line(record, self._rounds), highlight=False)


def _line(record: RoundRecord, rounds: int) -> str:
    loss = "–" if record.eval_loss is None else f"{record.eval_loss:.4f}"
    last = max(record.clients, key=lambda client: client.total_s).name if record.clients else "–"
    refused = sum(is_left_out(client) for client in record.clients)
    waited = f"  waited {record.waited_s:.1f} s" if record.waited_s else ""
    read = f"  read again {record.refit_s:.1f} s" if record.refit_s else ""
    return (
        f"round {record.round:>{len(str(rounds))}}/{rounds}  virtual clock "
        f"{record.elapsed_s:9.1f} s (+{record.round_latency_s:.1f} s, last: {last})  "
        f"test loss {loss}" + (f"  left out: {refused}" if refused else "") + waited + read
    )


@contextmanager
def observer(scenario: Scenario, *, quiet: bool, as_json: bool) -> Iterator[Observer]:
    """Return what fits the terminal: a bar, plain lines, JSON lines, or silence."""
    if quiet:
        yield Observer()
    elif as_json:
        yield JsonLines()
    elif sys.stderr.isatty():
        with Live(scenario.rounds, scenario.cohort_size) as live:
            yield live
    else:
        yield Lines(scenario.rounds)


@contextmanager
def told_when_interrupted(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into the line that says what was kept and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(kept(folder)) from None
