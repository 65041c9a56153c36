"""Writing a run directory while the run goes on.

The order of a round's writes makes a kill at any moment safe. First the round's line is
appended to rounds.jsonl and flushed to the device; then its checkpoint appears by a rename.
A kill between the two leaves a line without a checkpoint: on resuming, rounds.jsonl is cut
back to the checkpoint's round, and the round is computed again from the same state and the
same random streams, which gives the same line.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from airtune.errors import InputError
from airtune.plugins import provenance
from airtune.record import checkpoint as checkpoints
from airtune.record.checkpoint import Checkpoint
from airtune.record.files import (
    LOCK,
    TEMPORARY,
    append_line,
    explained,
    flush_folder,
    lock_folder,
    write_durably,
)
from airtune.record.provenance import machine, versions
from airtune.record.reading import ROUNDS, RUN, complete_lines, parsed_rounds, read_info
from airtune.record.schema import (
    RoundRecord,
    RunDescription,
    dump_json,
    from_json,
    json_line,
    plain,
)

FORMAT = 1
CHECKPOINTS, ADAPTER, REPORT = "checkpoint", "adapter", "report.html"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


class RunDirectory:
    """A run directory that this process writes to; use it in a `with` block.

    Leaving the block releases the folder. Where an error ends the block, run.json says
    "failed" and quotes it; the run can still be resumed.
    """

    def __init__(self, path: Path, info: dict[str, Any], lock: int) -> None:
        self.path = path
        self._info = info
        self._lock: int | None = lock
        self._notices: list[str] = []

    @classmethod
    def create(
        cls,
        out: str | Path,
        *,
        scenario_values: Mapping[str, Any],
        method: str,
        replace: bool = False,
    ) -> Self:
        """Begin a new run in a folder that is new or empty.

        Args:
            out: the folder; made where it does not exist.
            scenario_values: every key of the scenario, in JSON's types; `seed` among them.
            method: the planning method.
            replace: remove the run that the folder holds. Only what a run writes is removed.

        Raises:
            InputError: the folder holds another run or other files, or cannot be written to.
        """
        path = Path(out)
        _make_folder(path)
        lock = lock_folder(path)
        try:
            if replace and (path / RUN).exists():
                read_info(path)  # refuses where run.json is somebody else's
                _remove_run(path)
            else:
                _require_unused(path)
            directory = cls(path, _new_info(scenario_values, method), lock)
            _write_info(path, directory._info)
        except BaseException:
            os.close(lock)
            raise
        return directory

    @classmethod
    def resume(cls, out: str | Path, *, scenario_values: Mapping[str, Any], method: str) -> Self:
        """Go on with the run in a folder; `finished` says whether there is anything to do.

        A folder in which a run was killed before it had written anything starts afresh.

        Raises:
            InputError: there is no run, or it is of another scenario, seed, method or
                airtune version; names the first difference and both values.
        """
        path = Path(out)
        if path.is_dir() and not (path / RUN).exists() and not _foreign(path):
            directory = cls.create(path, scenario_values=scenario_values, method=method)
            directory._notices.append(f"'{path}' holds no round yet: starting from the beginning")
            return directory
        info = read_info(path)
        lock = lock_folder(path)
        try:
            info = read_info(path)  # again: the lock's last holder may have written since
            wanted = _new_info(scenario_values, method)
            _require_same_run(path, info, wanted)
            directory = cls(path, info, lock)
            directory._note_other_libraries(wanted["versions"])
            directory._note_other_plugins(wanted["plugins"])
            if not directory.finished:
                info.update(status="running", ended_at=None, error=None)
                info["resumed_at"] = [*info.get("resumed_at", []), _now()]
                _write_info(path, directory._info)
        except BaseException:
            os.close(lock)
            raise
        return directory

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self._info["status"] == "finished")

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should be told, one line each, e.g. that a checkpoint was damaged."""
        return tuple(self._notices)

    @property
    def description(self) -> RunDescription | None:
        """What was known before the first round, where that was recorded already."""
        cell = self._info.get("cell")
        return None if cell is None else from_json(RunDescription, cell, str(self.path / RUN))

    @property
    def adapter_path(self) -> Path:
        """Where the adapter goes, in PEFT's format."""
        return self.path / ADAPTER

    def describe(self, description: RunDescription) -> None:
        """Record what is known before the first round.

        Raises:
            InputError: a resumed run finds other model weights than it began with.
            RunError: it cannot be written.
        """
        before = self.description
        if before is not None and before.model_fingerprint != description.model_fingerprint:
            raise InputError(
                f"'{self.path}' was begun with other model weights (fingerprint "
                f"{before.model_fingerprint}, now {description.model_fingerprint}): "
                "give another --out"
            )
        self._info["cell"] = plain(description)
        _write_info(self.path, self._info)

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to rounds.jsonl; on return the device has it.

        Raises:
            RunError: it cannot be written, or a number that has to be finite is not.
        """
        append_line(self.path / ROUNDS, json_line(record))

    def save_checkpoint(
        self, round: int, tensors: Mapping[str, np.ndarray], payload: Mapping[str, Any]
    ) -> None:
        """Save the state after a round that was appended; the last two are kept.

        Args:
            round: the round that ended.
            tensors: arrays by name.
            payload: the rest of the state, in JSON's types.

        Raises:
            RunError: it cannot be written; earlier checkpoints are untouched.
        """
        checkpoints.save(self.path / CHECKPOINTS, Checkpoint(round, tensors, payload))

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the newest usable state and cut rounds.jsonl back to its round.

        None means that the run starts from the beginning. `notices` says what could not be
        used. A last line that a kill left unfinished is dropped.

        Raises:
            InputError: a line of rounds.jsonl is malformed (with its number).
            RunError: the folder cannot be written to.
        """
        folder, rounds = self.path / CHECKPOINTS, self.path / ROUNDS
        lines, _ = complete_lines(rounds)
        parsed_rounds(rounds, lines)
        found = None
        for round in reversed(checkpoints.saved_rounds(folder)):
            try:
                if round > len(lines):
                    raise checkpoints.Damaged(f"{ROUNDS} ends at round {len(lines)}")
                found = checkpoints.load(folder, round)
                break
            except checkpoints.Damaged as error:
                self._notices.append(f"checkpoint of round {round} cannot be used: {error}")
        start = 0 if found is None else found.round
        if found is None and lines:
            self._notices.append(f"no usable checkpoint in '{self.path}': starting from round 1")
        elif found is not None:
            self._notices.append(f"going on after round {start}")
        _cut_to(rounds, sum(len(line) + 1 for line in lines[:start]))
        checkpoints.drop_after(folder, start)
        return found

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Record that the run came to its end, and what was measured there.

        Raises:
            RunError: it cannot be written.
        """
        ended = {"status": "finished", "ended_at": _now(), "results": plain(results or {})}
        _write_info(self.path, {**self._info, **ended})
        self._info.update(ended)

    def close(self) -> None:
        """Release the folder; a second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InputError) and not (self.path / ROUNDS).exists():
            # Nothing began: the folder must not stand in the way of the mended command.
            with suppress(Exception):
                _remove_run(self.path)
        elif error is not None and not self.finished:
            line = " ".join(str(error).split()) or type(error).__name__
            self._info.update(status="failed", ended_at=_now(), error=line)
            # The error itself is what the user has to see, not that this note failed too.
            with suppress(Exception):
                _write_info(self.path, self._info)
        self.close()

    def _note_other_libraries(self, now: Mapping[str, str | None]) -> None:
        for name, version in now.items():
            before = self._info["versions"].get(name)
            if before != version:
                self._notices.append(
                    f"the run was begun with {name} {before} and goes on with {version}: the "
                    "rounds to come may differ from an uninterrupted run's"
                )

    def _note_other_plugins(self, now: Sequence[Mapping[str, str]]) -> None:
        before = {plugin["plugin"]: plugin["sha256"] for plugin in self._info.get("plugins", [])}
        for plugin in now:
            if before.get(plugin["plugin"], plugin["sha256"]) != plugin["sha256"]:
                self._notices.append(
                    f"the plugin {plugin['plugin']} has changed since the run was begun: the "
                    "rounds to come are done by its new code"
                )
            if plugin not in self._info.setdefault("plugins", []):
                self._info["plugins"].append(dict(plugin))


def _write_info(path: Path, info: Mapping[str, Any]) -> None:
    text = dump_json(info, indent=2) + "\n"
    write_durably(path / RUN, text.encode())


def _new_info(scenario_values: Mapping[str, Any], method: str) -> dict[str, Any]:
    scenario = plain(scenario_values)
    return {
        "format": FORMAT,
        "status": "running",
        "method": method,
        "seed": scenario["seed"],
        "started_at": _now(),
        "ended_at": None,
        "error": None,
        "resumed_at": [],
        "versions": versions(),
        "platform": machine(),
        "scenario": scenario,
        "plugins": provenance(scenario.get("plugins", ())),
        "cell": None,
        "results": {},
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out '{path}' is a file: give a folder") from None
    except OSError as error:
        raise InputError(f"cannot make the folder '{path}': {error.strerror}") from None


def _foreign(path: Path) -> list[str]:
    """Names in the folder that a run does not leave before its run.json exists."""
    names = (entry.name for entry in path.iterdir())
    return sorted(name for name in names if name != LOCK and not name.startswith(TEMPORARY))


def _require_unused(path: Path) -> None:
    names = _foreign(path)
    if RUN in names:
        info = read_info(path)
        what = f"{info['scenario'].get('name')}, {info['method']}, {info['status']}"
        raise InputError(
            f"'{path}' already holds a run ({what}): go on with --resume, throw it away with "
            "--replace, or give another --out"
        )
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"'{path}' is not empty (it holds '{names[0]}'{more}): give a new folder with --out"
        )


def _remove_run(path: Path) -> None:
    """Remove what a run writes, run.json last, so that a kill leaves a run and no riddle."""
    with explained(path, 0):
        shutil.rmtree(path / CHECKPOINTS, ignore_errors=True)
        for name in _ADAPTER_FILES:
            (path / ADAPTER / name).unlink(missing_ok=True)
        with suppress(OSError):  # not there, or the user keeps something else in it
            (path / ADAPTER).rmdir()
        for name in (REPORT, ROUNDS, RUN):
            (path / name).unlink(missing_ok=True)
        flush_folder(path)


def _require_same_run(path: Path, info: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    before, now = ({**_flat(i["scenario"]), "method": i["method"]} for i in (info, wanted))
    before["airtune version"] = info["versions"].get("airtune")
    now["airtune version"] = wanted["versions"]["airtune"]
    for key in [*before, *(key for key in now if key not in before)]:
        # A key without a value is one that the run's own version of the schema did not have yet.
        old, new = (values.get(key) for values in (before, now))
        if old != new:
            old, new = (values.get(key, "not set") for values in (before, now))
            raise InputError(
                f"'{path}' holds another run: {key} was {old!r} and is now {new!r}; resume "
                "with the same settings, or give another --out"
            )


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list):
        items = {str(i): item for i, item in enumerate(values)}.items()
    else:
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flat(item, f"{prefix}.{key}" if prefix else key))
    return flat


def _cut_to(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        with explained(path, 0), open(path, "rb+") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
