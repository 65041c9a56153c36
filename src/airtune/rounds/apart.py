"""One run of a study in a process of its own: it goes on where it stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airtune.record.folder import ADAPTER, CHECKPOINTS, CLIENTS
from airtune.record.identity import write_info
from airtune.record.provenance import versions
from airtune.record.reading import RUN
from airtune.study.apart import performed
from airtune.study.keys import with_paths_of

if TYPE_CHECKING:
    from airtune.engines import Engine
    from airtune.record import RoundRecord
    from airtune.scenario import Scenario


def perform(task: Mapping[str, Any]) -> str | None:
    """Do one run, as `airtune.study.apart.performed`; None, or the line that says why not."""
    return performed(_run, task)


def _run(folder: Path, task: Mapping[str, Any]) -> None:
    import torch

    from airtune.report import write_report
    from airtune.rounds.observer import Observer
    from airtune.rounds.running import run
    from airtune.rounds.trackers import tracked
    from airtune.scenario import scenario_from_dict

    torch.set_num_threads(task["threads"])
    scenario = scenario_from_dict(task["values"])
    begun = (folder / RUN).is_file()
    values = scenario.model_dump(mode="json")
    if begun:
        _note_where_files_lie(folder, values)
    other = begun and _cannot_go_on(folder, values)
    clock = _Clock(task.get("until"))

    class Watch(Observer):
        """Ends the run, as Ctrl-C would, after the last round that there is time for."""

        def started(self, initial_loss: float | None) -> None:
            clock.began()

        def round_ended(self, record: RoundRecord) -> None:
            clock.round_ended()
            if record.round < scenario.rounds:
                clock.check_time_for_another()

    try:
        with tracked(task.get("trackers", []), scenario, folder, Watch()) as watch:
            run(
                scenario,
                out=folder,
                engine=partial(_engine, shared=task.get("shared")),
                resume=begun and not other,
                replace=other,
                observer=watch,
            )
    except KeyboardInterrupt:
        if clock.is_over:
            return  # it goes on with the next call
        raise
    write_report(folder)
    # What only a resumption needs may be gigabytes.
    for part in (CHECKPOINTS, CLIENTS) if task["keep_adapter"] else (CHECKPOINTS, CLIENTS, ADAPTER):
        shutil.rmtree(folder / part, ignore_errors=True)


class _Clock:
    """Says after which round a run has no time for another; `until` is as `time.time()`."""

    def __init__(self, until: float | None) -> None:
        self._until = until
        self._last_s, self._longest_s = time.time(), 0.0
        self.is_over = False

    def began(self) -> None:
        """Count from here on: the first round begins."""
        self._last_s = time.time()

    def round_ended(self) -> None:
        """Take the time of a round."""
        now = time.time()
        self._longest_s = max(self._longest_s, now - self._last_s)
        self._last_s = now

    def check_time_for_another(self) -> None:
        """Raise KeyboardInterrupt where no time is left for a round as long as the longest."""
        if self._until is not None and self._last_s + self._longest_s > self._until:
            self.is_over = True
            raise KeyboardInterrupt


def _engine(scenario: Scenario, shared: Mapping[str, Any] | None) -> Engine:
    """Return an engine in this process; it shares work where that is exact.

    A hash does not know a plugin's code, and a GPU adds up in no certain order.
    """
    import torch

    from airtune.engines.local import LocalEngine
    from airtune.engines.sharing import SharingEngine
    from airtune.plugins import provenance

    engine = LocalEngine(scenario)
    if not shared or provenance(scenario.plugins) or torch.cuda.is_available():
        return engine
    return SharingEngine(engine, scenario, Path(shared["folder"]), shared["limit_bytes"])


def _cannot_go_on(folder: Path, values: Mapping[str, Any]) -> bool:
    """Whether a run was begun by another version, or before the scenario had all of its keys."""
    try:
        info = json.loads((folder / RUN).read_bytes())
        return bool(
            info["versions"].get("airtune") != versions()["airtune"] or info["scenario"] != values
        )
    except (ValueError, KeyError, AttributeError):
        return False  # no record that can be read: resuming says what is wrong with it


def _note_where_files_lie(folder: Path, values: Mapping[str, Any]) -> None:
    """Write into a begun run's record where the files lie now that count by their content."""
    try:
        info = json.loads((folder / RUN).read_bytes())
        before = info["scenario"]
        if before != values and with_paths_of(before, values) == values:
            write_info(folder, {**info, "scenario": values})
    except (ValueError, KeyError, TypeError):
        return  # as above
