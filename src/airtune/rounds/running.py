"""A whole run: the round loop with its run directory around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from airtune.engines import Engine
from airtune.engines.local import LocalEngine
from airtune.errors import RunError
from airtune.record import Record, RunDirectory, read_record
from airtune.record.folder import CLIENTS
from airtune.rounds.cell import Cell, DecideHook, checked_profiles, decide, open_cell
from airtune.rounds.loop import opening
from airtune.rounds.observer import Observer
from airtune.rounds.state import State, packed, restored
from airtune.rounds.stepping import step
from airtune.scenario import Scenario


def run(
    scenario: Scenario,
    *,
    out: str | Path,
    engine: Engine | Callable[[Scenario], Engine] = LocalEngine,
    resume: bool = False,
    replace: bool = False,
    observer: Observer | None = None,
    decide: DecideHook = decide,
) -> Record:
    """Fine-tune over the simulated cell and leave record, adapter and checkpoints in `out`.

    Args:
        scenario: what to run.
        out: the run directory.
        engine: who does the clients' work: an engine, which stays open, or what makes one,
            which is closed at the end. Default: this process.
        resume: go on from the last usable checkpoint in `out`.
        replace: throw away the run that `out` holds.
        observer: told of progress.
        decide: plans a round and assigns the clients' work; default: by the scenario's method.

    Returns:
        The record, as `read_record(out)` reads it.

    Raises:
        InputError: the scenario cannot be run, or `out` cannot be written as asked.
        RunError: the run began and could not go on; what was recorded stays.
        KeyboardInterrupt: as it came; run.json then says "interrupted", and `resume` goes on.
    """
    observer = observer or Observer()
    checked_profiles(scenario)  # unknown names are refused before anything is written
    values, method = scenario.model_dump(mode="json"), scenario.planning.method
    known: dict[str, Any] = {"scenario_values": values, "method": method}
    opened = partial(
        open_cell,
        scenario,
        engine=engine,
        observer=observer,
        decide=decide,
        folder=Path(out) / CLIENTS,
    )
    if replace and not resume:
        # What the folder holds is thrown away when the new run is known to be possible.
        RunDirectory.check(out, **known, replace=True)
        observer.preparing("loading model and data")
        with opened() as cell, RunDirectory.create(out, **known, replace=True) as directory:
            _run_rounds(cell, directory)
        return read_record(out)
    begun = RunDirectory.resume if resume else RunDirectory.create
    with begun(out, **known) as directory:
        if directory.finished:
            for notice in directory.notices:
                observer.noticed(notice)
        else:
            observer.preparing("loading model and data")
            with opened() as cell:
                _run_rounds(cell, directory)
    return read_record(out)


def _run_rounds(cell: Cell, directory: RunDirectory) -> None:
    state = restored(directory.load_checkpoint(), cell)
    if state is None:
        state, described = opening(cell)
        directory.describe(described)
    else:
        federation = cell.federation
        directory.require_same(federation.model_fingerprint, federation.text_fingerprint)
    for notice in directory.notices:
        cell.observer.noticed(notice)
    known = directory.description
    cell.observer.started(None if known is None else known.initial_eval_loss)
    while not state.is_last(cell.scenario):
        state, record = step(cell, state)
        directory.append_round(record)
        if state.is_last(cell.scenario):
            _save_adapter(cell, state, directory.adapter_path)
        directory.save_checkpoint(state.round, *packed(state))
        cell.observer.round_ended(record)
    directory.finish()


def _save_adapter(cell: Cell, state: State, folder: Path) -> None:
    try:
        cell.engine.save_adapter(state.adapter, str(folder))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the adapter cannot be written to '{folder}': {error}; what was recorded is kept: "
            "make room and go on with --resume"
        ) from None
