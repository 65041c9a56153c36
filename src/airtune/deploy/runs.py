"""Runs on a started server: one at a time, each with a folder of its own in the state folder."""

from __future__ import annotations

import datetime
import json
import secrets
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from airtune.deploy.control import run_status, stop_run
from airtune.deploy.server import CONNECTION, SERVER_ENDED, ServerFolder, flwr, is_running, leave
from airtune.errors import InputError, RunError
from airtune.record.folder import make_folder
from airtune.scenario import load_scenario
from airtune.scenario.overrides import toml_value

APP = Path(__file__).parent / "flower_app"
"""The Flower app, as it ships with the package."""
_STATUS_EVERY_S = 30.0


@dataclass
class Run:
    """One run that was handed to the server.

    Attributes:
        state: the server's state folder.
        id: the run's name, e.g. `20261127-101500-3f`.
    """

    state: ServerFolder
    id: str
    _asked_s: float = 0.0

    @property
    def folder(self) -> Path:
        """Where this run's files are."""
        return self.state.runs / self.id

    @property
    def progress(self) -> Path:
        """What it has said so far."""
        return self.folder / "progress.log"

    @property
    def about(self) -> dict[str, Any]:
        """Return what was asked: `scenario`, `out`, `begun`, and `flower`, Flower's own id."""
        found = json.loads((self.folder / "about.json").read_text())
        return found if isinstance(found, dict) else {}

    def outcome(self, *, ask_now: bool = False) -> dict[str, Any] | None:
        """Return how it ended, or None while it goes on: `ok`, `exit`, `error`."""
        found = self._left()
        # The app leaves its outcome in a file; only its violent end shows in Flower's list.
        waited = time.monotonic() > self._asked_s + _STATUS_EVERY_S
        if found is not None or not (ask_now or waited):
            return found
        self._asked_s = time.monotonic()
        status = self._flower_status()
        if status is None and not is_running(self.state):
            ended: dict[str, Any] = SERVER_ENDED
        elif status is None or not status.startswith("finished"):
            return None
        else:
            ended = {"ok": False, "exit": 1, "error": f"Flower's run ended as {status}"}
        found = self._left() or ended
        leave(self.folder / "outcome.json", found)
        return found

    def stop(self) -> None:
        """End it; what it recorded stays."""
        stop_run(self.state, int(self.about["flower"]))
        leave(
            self.folder / "outcome.json",
            {"ok": False, "exit": 1, "error": "stopped; go on with --resume"},
        )

    def _flower_status(self) -> str | None:
        try:
            return run_status(self.state, int(self.about["flower"]))
        except (RunError, InputError):
            return None  # Flower's server may be starting again

    def _left(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / "outcome.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def submit(
    state: ServerFolder, settings: Mapping[str, str | int | float | bool], app: Path = APP
) -> Run:
    """Start a run.

    One goes on at a time: devices train for one run, and the band is one.

    Args:
        state: of the started server.
        settings: the app's configuration; `scenario` and `out` are kept for `status` too.
        app: the folder of the Flower app.

    Raises:
        InputError: no such app, no server, another run is going on, or a path is not Unicode.
        RunError: Flower refused the run.
    """
    if not (app / "pyproject.toml").is_file():
        raise InputError(f"--app '{app}': no Flower app there (a folder with pyproject.toml)")
    make_folder(state.folder, "--state")  # refuses a file
    with FileLock(state.folder / "runs.lock"):
        if (going := current(state)) is not None:
            raise InputError(
                f"run {going.id} is going on ({going.about['scenario']}), and a server has one at "
                "a time: `airtune deploy attach` shows it, `airtune deploy stop` ends it"
            )
        now = datetime.datetime.now()
        run = Run(state, f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}", time.monotonic())
        own = {"outcome": str(run.folder / "outcome.json"), "progress": str(run.progress)}
        text = "".join(
            f"{key} = {_toml(key, value)}\n" for key, value in ({**settings, **own}).items()
        )
        run.folder.mkdir(parents=True)
        config = run.folder / "run.toml"
        config.write_text(text, encoding="utf-8")
        try:
            answer = flwr(state, "run", str(app), CONNECTION, "--run-config", str(config))
        except (RunError, InputError):
            config.unlink()
            run.folder.rmdir()
            raise
        about = {
            "flower": str(answer["run-id"]),
            "scenario": settings["scenario"],
            "out": settings["out"],
            "begun": now.astimezone().isoformat(timespec="seconds"),
        }
        leave(run.folder / "about.json", about)
    return run


def listed(state: ServerFolder) -> list[Run]:
    """Return the runs of this server, the newest last."""
    found = sorted(path.parent.name for path in state.runs.glob("*/about.json"))
    return [Run(state, name) for name in found]


def current(state: ServerFolder) -> Run | None:
    """Return the run that is going on, or None."""
    runs = listed(state)
    return runs[-1] if runs and runs[-1].outcome(ask_now=True) is None else None


def chosen(state: ServerFolder, name: str | None) -> Run:
    """Return a run by its id, or the newest.

    Raises:
        InputError: there is none of that name.
    """
    runs = {run.id: run for run in listed(state)}
    if not runs:
        raise InputError(f"no run was ever begun in '{state.folder}'")
    if name is not None and name not in runs:
        raise InputError(f"no run '{name}'; there are: {', '.join(list(runs)[-5:])}")
    return runs[name or list(runs)[-1]]


def as_json(value: object) -> str:
    """Return a value as JSON, as the app's configuration carries it."""
    return json.dumps(value)


def clients_of(run: Run) -> tuple[str, ...]:
    """Return the clients of a run's scenario; none where what was asked cannot be read again."""
    try:
        asked = tomllib.loads((run.folder / "run.toml").read_text(encoding="utf-8"))
        return load_scenario(asked["scenario"], json.loads(asked["overrides"])).client_names
    except (OSError, ValueError, KeyError, InputError):
        return ()


def _toml(key: str, value: str | int | float | bool) -> str:
    try:
        str(value).encode()
    except UnicodeEncodeError:  # the name of a file whose bytes are no UTF-8
        raise InputError(f"{key} {value!r}: not Unicode text; give the file another name") from None
    return toml_value(value)
