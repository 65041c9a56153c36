"""What Flower's ServerApp runs: the round loop of `airtune.rounds`, on devices."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airtune.deploy.bands import SocketBands
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.presence import deciding_among
from airtune.deploy.privacy import parse_privacy
from airtune.deploy.protocol import plain
from airtune.deploy.roster import Mailbox
from airtune.errors import InputError, RunError
from airtune.merging.rules import check_deployable
from airtune.record import RoundRecord
from airtune.rounds import run
from airtune.rounds.cell import read_files
from airtune.rounds.observer import Observer
from airtune.scenario import load_scenario


class ProgressLog(Observer):
    """Writes a run's progress, line by line, to a file that the waiting command prints."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def say(self, line: str) -> None:
        """Add a line; what a device said in it is printed without control characters."""
        line = plain(line)
        print(line, flush=True)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def preparing(self, what: str) -> None:
        """Say what takes a while."""
        self.say(what)

    def started(self, initial_loss: float | None) -> None:
        """Say where the run starts."""
        self.say(f"untrained: loss {_shown(initial_loss)}")

    def round_ended(self, record: RoundRecord) -> None:
        """Say how the round went, and which clients it went without."""
        out = [client for client in record.clients if client.status != "ok"]
        missing = "; ".join(f"{client.name} {client.status}" for client in out)
        self.say(
            f"round {record.round}: loss {_shown(record.eval_loss)}, "
            f"{record.round_latency_s:.2f} s on the clock (planned "
            f"{_shown(record.predicted_latency_s)}), {record.wall_s:.2f} s in all"
            + (f"; without {missing}" if missing else "")
        )


def run_on_devices(mailbox: Mailbox, config: Mapping[str, Any], run_id: str) -> None:
    """Run a scenario on the connected devices, as the app's configuration says.

    Whether it went well is left in the file `outcome`, for the command that waits.

    Raises:
        InputError, RunError: as `airtune.rounds.run`.
    """
    outcome = Path(str(config["outcome"])) if config["outcome"] else None
    try:
        _run(mailbox, config, run_id)
    except (InputError, RunError) as error:
        exit_status = 2 if isinstance(error, InputError) else 1
        _leave(outcome, {"ok": False, "exit": exit_status, "error": str(error)})
        raise
    except Exception as error:
        _leave(outcome, {"ok": False, "exit": 1, "error": f"{type(error).__name__}: {error}"})
        raise
    _leave(outcome, {"ok": True})


def _run(mailbox: Mailbox, config: Mapping[str, Any], run_id: str) -> None:
    scenario = load_scenario(str(config["scenario"]), json.loads(str(config["overrides"])))
    check_deployable(scenario)
    read_files(scenario)  # what is wrong with one is said before the devices are waited for
    out = Path(str(config["out"]) or f"runs/{scenario.name}-devices")
    devices = int(config["devices"]) or len(scenario.client_names)
    if devices > len(scenario.client_names):
        raise InputError(
            f"--devices {devices}: scenario '{scenario.name}' has {len(scenario.client_names)} "
            "clients"
        )
    timings = out.with_name(out.name + ".timings.jsonl")
    timings.parent.mkdir(parents=True, exist_ok=True)
    allowed = str(config["allow-privacy"])
    progress = ProgressLog(Path(str(config["progress"])) if config["progress"] else None)
    if config["resume"] and scenario.training.keep_optimizer:
        # They are on the devices alone, and may be of a round that the record does not have.
        progress.say("resumed: AdamW's moments start afresh on every device (keep_optimizer)")
    progress.say("loading model and data")
    engine = FlowerEngine(
        scenario,
        mailbox,
        Conditions(
            devices=devices,
            wait_s=_number(config, "wait-s", 0),
            slack=_number(config, "slack", 1),
            engine_s=_number(config, "engine-s", 0),
            longest_s=_number(config, "longest-s", 1),
            privacy=parse_privacy(allowed, "--allow-privacy") if allowed else None,
        ),
        run=run_id,
        wire_log=Path(str(config["wire"])) if config["wire"] else None,
        bands=SocketBands(Path(str(config["bands"]))) if config["bands"] else None,
        timings=timings,
        say=progress.say,
    )
    begin = time.perf_counter()
    try:
        if config["resume"] or config["replace"] or not (out / "run.json").exists():
            # The devices first: a run without them leaves no folder that the next one trips over.
            engine.federation()
            if not config["resume"]:  # not before: the run that they are of may stay
                timings.unlink(missing_ok=True)
        run(
            scenario,
            out=out,
            engine=engine,
            resume=bool(config["resume"]),
            replace=bool(config["replace"]),
            observer=progress,
            decide=deciding_among(engine.present, engine.holders),
        )
    finally:
        engine.close()
    progress.say(f"done in {time.perf_counter() - begin:.1f} s")


def _number(config: Mapping[str, Any], key: str, least: float) -> float:
    """Return a number of the app's configuration, which `flwr run` may have changed."""
    value = float(config[key])
    if not value >= least:  # compared with NaN no limit is ever reached
        raise InputError(f"{key} = {value:g} in the app's configuration: allowed from {least:g}")
    return value


def _leave(path: Path | None, outcome: Mapping[str, Any]) -> None:
    if path is not None:
        written = path.with_suffix(".new")
        written.write_text(json.dumps(outcome), encoding="utf-8")
        written.replace(path)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
