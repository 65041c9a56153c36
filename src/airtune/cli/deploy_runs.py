"""Runs on devices: `airtune deploy run|attach|stop|status|try`."""

from __future__ import annotations

import functools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from airtune.deploy.runs import Run

State = Annotated[Path, typer.Option("--state", help="Folder of the server's state.")]
Scenario = Annotated[str, typer.Argument(help="A scenario file, or a built-in one.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where the run is recorded.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the scenario."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Throw away what --out holds.")]
RunId = Annotated[str | None, typer.Argument(help="A run's id. Default: the newest.")]


def run(
    scenario: Scenario = "demo",
    out: Out = None,
    devices: Annotated[
        int, typer.Option("--devices", min=0, help="Fewest devices to start with; 0: all.")
    ] = 0,
    wait_s: Annotated[float, typer.Option("--wait", min=0, help="How long to wait, s.")] = 60.0,
    slack: Annotated[
        float, typer.Option("--slack", min=1, help="Deadline: the plan's round latency times this.")
    ] = 3.0,
    engine_s: Annotated[
        float, typer.Option("--grace", min=0, help="…plus this, for Flower's own time, s.")
    ] = 30.0,
    longest_s: Annotated[
        float, typer.Option("--longest", min=1, help="…and no round waits longer than this, s.")
    ] = 3600.0,
    allow_privacy: Annotated[
        str | None,
        typer.Option(
            "--allow-privacy",
            metavar="clip=C,noise=Z",
            help="Let devices clip and noise their updates, at most so; without it none may.",
        ),
    ] = None,
    bands: Annotated[
        Path | None, typer.Option("--bands", help="Unix socket of what enforces the band shares.")
    ] = None,
    app_folder: Annotated[
        Path | None, typer.Option("--app", help="Another Flower app than the one that ships.")
    ] = None,
    state: State = Path("deployment"),
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = (
        False
    ),
    replace: Replace = False,
) -> None:
    """Run a scenario on the connected devices and wait for its end.

    A server has one run at a time. Ctrl-C ends the run; where this command is killed, the run goes
    on and `airtune deploy attach` shows it again.
    """
    from airtune.deploy import runs, server
    from airtune.deploy.privacy import parse_privacy
    from airtune.errors import InputError

    if resume and replace:
        raise InputError("--resume goes on with a run and --replace throws it away: give one")
    check_number("--wait", wait_s, "from 0, or inf", endless=True)
    check_number("--slack", slack, "from 1")
    check_number("--grace", engine_s, "from 0")
    check_number("--longest", longest_s, "from 1, or inf", endless=True)
    if allow_privacy is not None:
        parse_privacy(allow_privacy, "--allow-privacy")
    where = server.ServerFolder(state.resolve())
    conditions = (devices, wait_s, slack, engine_s)
    settings = _settings(scenario, overrides, out, conditions, resume=resume, replace=replace)
    settings["longest-s"] = float(longest_s)
    settings["allow-privacy"] = allow_privacy or ""
    settings["wire"] = str(where.wire_log)
    settings["bands"] = "" if bands is None else str(bands.resolve())
    submitted = runs.submit(where, settings, app_folder or runs.APP)
    typer.echo(f"run {submitted.id}")
    _follow(submitted)


def check_number(option: str, value: float, allowed: str, *, endless: bool = False) -> None:
    """Refuse what is no finite number: compared with NaN no limit is ever reached.

    Args:
        option: its name.
        value: what was given.
        allowed: which finite numbers are, for the message.
        endless: infinity is allowed too.

    Raises:
        InputError: it is not finite.
    """
    from airtune.errors import InputError

    if math.isnan(value) or (math.isinf(value) and not endless):
        raise InputError(f"{option} {value:g}: allowed is a number {allowed}")


def attach(run_id: RunId = None, state: State = Path("deployment")) -> None:
    """Show a run from its beginning and wait for its end; Ctrl-C leaves it alone."""
    from airtune.deploy import runs, server

    _follow(runs.chosen(server.ServerFolder(state.resolve()), run_id), stop=False)


def stop(run_id: RunId = None, state: State = Path("deployment")) -> None:
    """End a run; what it recorded stays, and `airtune deploy run … --resume` goes on."""
    from airtune.deploy import runs, server
    from airtune.errors import InputError

    chosen = runs.chosen(server.ServerFolder(state.resolve()), run_id)
    if chosen.outcome(ask_now=True) is not None:
        raise InputError(f"run {chosen.id} has ended already")
    chosen.stop()
    typer.echo(f"stopped {chosen.id}; record: {chosen.about['out']}")


def status(
    state: State = Path("deployment"),
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Show the run, and each device: last seen, speed, round, bytes."""
    import json

    from airtune.deploy import server
    from airtune.deploy import status as shown

    found = shown.status(server.ServerFolder(state.resolve()))
    typer.echo(json.dumps(found, indent=1) if as_json else shown.text(found))


def try_here(
    scenario: Scenario = "tiny",
    out: Out = None,
    overrides: Overrides = None,
    replace: Replace = False,
    emulate: Annotated[
        bool, typer.Option("--emulate", help="Each device takes its profile's time.")
    ] = False,
) -> None:
    """Start a server and all devices on this machine, run, and end everything.

    Real Flower processes, TLS and fresh keys; nothing is left but the record.
    """
    from airtune.deploy import tryout
    from airtune.scenario import load_scenario

    source = str(Path(scenario).resolve()) if Path(scenario).is_file() else scenario
    settings = _settings(scenario, overrides, out, (0, 120.0, 3.0, 60.0), replace=replace)
    settings["bands"] = ""
    tryout.run_here(
        load_scenario(scenario, overrides or []),
        source,
        overrides or [],
        settings,
        emulate=emulate,
        say=typer.echo,
        follow=functools.partial(_follow, again="airtune deploy run, the same --out and --resume"),
    )


def _settings(
    scenario: str,
    overrides: list[str] | None,
    out: Path | None,
    conditions: tuple[int, float, float, float],
    *,
    resume: bool = False,
    replace: bool = False,
) -> dict[str, str | int | float | bool]:
    from airtune.deploy import runs
    from airtune.merging.rules import check_deployable
    from airtune.record.folder import make_folder, require_unused
    from airtune.scenario import load_scenario
    from airtune.scenario.overrides import absolute_override

    loaded = load_scenario(scenario, overrides or [])
    check_deployable(loaded)
    is_file = Path(scenario).is_file()
    beside = Path(scenario).parent if is_file else None
    changes = [absolute_override(text, beside) for text in overrides or []]
    folder = (out or Path("runs") / f"{loaded.name}-devices").resolve()
    if folder.exists() and not resume and not replace:
        make_folder(folder)  # refuses a file
        require_unused(folder)
    devices, wait_s, slack, engine_s = conditions
    return {
        "scenario": str(Path(scenario).resolve()) if is_file else scenario,
        "overrides": runs.as_json(changes),
        "out": str(folder),
        "resume": resume,
        "replace": replace,
        "devices": devices,
        "wait-s": float(wait_s),
        "slack": float(slack),
        "engine-s": float(engine_s),
    }


_AGAIN = "the same command and --resume"


def _follow(run: Run, *, stop: bool = True, again: str = _AGAIN) -> None:
    from airtune.cli.ending import Interrupted, kept
    from airtune.errors import InputError, RunError

    printed = 0
    try:
        while (ended := run.outcome()) is None:
            printed = _print_new(run.progress, printed)
            time.sleep(0.5)
    except KeyboardInterrupt:
        if stop:
            run.stop()
            raise Interrupted(kept(Path(run.about["out"]), again)) from None
        raise Interrupted(
            f"interrupted: run {run.id} goes on; `airtune deploy attach` shows it again, "
            "`airtune deploy stop` ends it"
        ) from None
    _print_new(run.progress, printed)
    if not ended["ok"]:
        raise (InputError if ended["exit"] == 2 else RunError)(ended["error"])
    typer.echo(f"record: {run.about['out']}")


def _print_new(path: Path, printed: int) -> int:
    if not path.exists():
        return printed
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[printed:]:
        typer.echo(line)
    return len(lines)
