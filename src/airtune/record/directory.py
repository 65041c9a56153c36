"""Writing a run directory while the run goes on.

The order of a round's writes makes a kill at any moment safe. First the round's line is
appended to rounds.jsonl and flushed to the device; then its checkpoint appears by a rename.
A kill between the two leaves a line without a checkpoint: on resuming, rounds.jsonl is cut
back to the checkpoint's round, and the round is computed again from the same state and the
same random streams, which gives the same line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from airtune.errors import InputError
from airtune.record import checkpoint as checkpoints
from airtune.record import lines
from airtune.record.checkpoint import Checkpoint
from airtune.record.files import LOCK, append_line, explained, lock_folder
from airtune.record.folder import (
    ADAPTER,
    CHECKPOINTS,
    foreign,
    make_folder,
    remove_run,
    require_unused,
)
from airtune.record.identity import (
    last_round_differs,
    new_info,
    now,
    require_same_run,
    write_info,
)
from airtune.record.reading import (
    FINISHED,
    INTERRUPTED,
    ROUNDS,
    RUN,
    complete_lines,
    is_whole,
    parsed_rounds,
    read_info,
)
from airtune.record.schema import RoundRecord, RunDescription, from_json, json_line, plain

if TYPE_CHECKING:
    from filelock import BaseFileLock


class RunDirectory:
    """A run directory that this process writes to; use it in a `with` block.

    Leaving the block releases the folder. Where an error ends the block, run.json says
    "failed" and quotes it, where Ctrl-C does, "interrupted"; both can be resumed.
    """

    def __init__(
        self, path: Path, info: dict[str, Any], lock: BaseFileLock, *, is_new: bool
    ) -> None:
        self.path = path
        self._info = info
        self._lock: BaseFileLock | None = lock
        self._is_new = is_new
        self._notices: list[str] = []
        self._not_copied: list[str] = []

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
        make_folder(path)
        lock = lock_folder(path)
        try:
            if replace and (path / RUN).exists():
                read_info(path)  # refuses where run.json is somebody else's
                remove_run(path)
            else:
                require_unused(path)
            directory = cls(path, new_info(scenario_values, method), lock, is_new=True)
            write_info(path, directory._info)
        except BaseException:
            lock.release()
            raise
        return directory

    @classmethod
    def check(
        cls,
        out: str | Path,
        *,
        scenario_values: Mapping[str, Any],
        method: str,
        resume: bool = False,
        replace: bool = False,
    ) -> None:
        """Refuse what `create` or `resume` would refuse, and change nothing.

        Raises:
            InputError: as they do.
        """
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise InputError(f"--out '{path}' is a file: give a folder")
        if (path / LOCK).exists():
            lock_folder(path).release()
        if resume and ((path / RUN).exists() or not path.is_dir() or foreign(path)):
            require_same_run(path, read_info(path), new_info(scenario_values, method))
        elif replace and (path / RUN).exists():
            read_info(path)
        elif path.is_dir():
            require_unused(path)

    @classmethod
    def resume(cls, out: str | Path, *, scenario_values: Mapping[str, Any], method: str) -> Self:
        """Go on with the run in a folder; `finished` says whether there is anything to do.

        A folder in which a run was killed before it had written anything starts afresh. Lines
        that rounds.jsonl has lost are restored where the checkpoints' copy has them. A run can
        be made longer by a larger number of rounds: its record is then the one that it would
        have, had it been planned so.

        Raises:
            InputError: there is no run, or it is of another scenario, seed, method or
                airtune version; names the first difference and both values.
            RunError: the folder cannot be written to.
        """
        path = Path(out)
        if path.is_dir() and not (path / RUN).exists() and not foreign(path):
            directory = cls.create(path, scenario_values=scenario_values, method=method)
            directory._notices.append(f"'{path}' holds no round yet: starting from the beginning")
            return directory
        info = read_info(path)
        lock = lock_folder(path)
        try:
            info = read_info(path)  # again: the lock's last holder may have written since
            wanted = new_info(scenario_values, method)
            require_same_run(path, info, wanted)
            directory = cls(path, info, lock, is_new=False)
            directory._note_other_libraries(wanted["versions"])
            directory._note_other_plugins(wanted["plugins"])
            directory._go_on(wanted["scenario"])
        except BaseException:
            lock.release()
            raise
        return directory

    def _go_on(self, scenario: Mapping[str, Any]) -> None:
        """Restore what was lost, make the run longer where that is wanted, and say "running"."""
        restored = lines.restore(self.path)
        if restored is not None:
            self._notices.append(restored)
        before, after = self._info["scenario"]["rounds"], scenario["rounds"]
        found = complete_lines(self.path / ROUNDS)[0]
        there = len(found)
        whole = is_whole(self._info["scenario"], parsed_rounds(self.path / ROUNDS, found))
        if self.finished and not whole:
            self._notices.append(
                f"{ROUNDS} has lost {lines.named(there + 1, before)} of the finished run, and no "
                "checkpoint has them: they are computed again"
            )
        elif self.finished and after == before:
            return
        if after > before:
            self._notices.append(f"the run is made longer: from {before} to {after} rounds")
            if there >= before and last_round_differs(self._info["scenario"]):
                self._notices.append(
                    f"round {before} was measured as the last one: it is computed again"
                )
                lines.keep(self.path, before - 1)
                checkpoints.drop_after(self.path / CHECKPOINTS, before - 1)
        self._info.update(status="running", ended_at=None, error=None, results={})
        self._info["scenario"] = dict(scenario)
        self._info["resumed_at"] = [*self._info.get("resumed_at", []), now()]
        write_info(self.path, self._info)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self._info["status"] == FINISHED)

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
            InputError: a resumed run finds other weights or examples than it began with.
            RunError: it cannot be written.
        """
        self.require_same(description.model_fingerprint, description.text_fingerprint)
        self._info["cell"] = plain(description)
        write_info(self.path, self._info)

    def require_same(self, model_fingerprint: str, text_fingerprint: str) -> None:
        """Refuse to go on with other weights or examples; what is not known is not compared.

        Raises:
            InputError: the run was begun with other ones.
        """
        before = self.description
        if before is None:
            return
        for what, known, now_it_is in (
            ("model weights", before.model_fingerprint, model_fingerprint),
            ("training or test examples", before.text_fingerprint, text_fingerprint),
        ):
            if known and now_it_is and known != now_it_is:
                raise InputError(
                    f"'{self.path}' was begun with other {what} (fingerprint {known}, now "
                    f"{now_it_is}): give another --out"
                )

    def append_round(self, record: RoundRecord) -> None:
        """Add one round to rounds.jsonl; on return the device has it.

        Raises:
            RunError: it cannot be written, or a number that has to be finite is not.
        """
        line = json_line(record)
        append_line(self.path / ROUNDS, line)
        self._not_copied.append(line)

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
        folder = self.path / CHECKPOINTS
        with explained(folder, 0):
            folder.mkdir(exist_ok=True)
        while self._not_copied:
            append_line(lines.copy_of(self.path), self._not_copied[0])
            del self._not_copied[0]
        checkpoints.save(folder, Checkpoint(round, tensors, payload))

    def load_checkpoint(self) -> Checkpoint | None:
        """Return the newest usable state and cut rounds.jsonl back to its round.

        None means that the run starts from the beginning. `notices` says what could not be
        used. A last line that a kill left unfinished is dropped.

        Raises:
            InputError: a line of rounds.jsonl is malformed (with its number).
            RunError: the folder cannot be written to.
        """
        folder, rounds = self.path / CHECKPOINTS, self.path / ROUNDS
        there, _ = complete_lines(rounds)
        parsed_rounds(rounds, there)
        found = None
        for round in reversed(checkpoints.saved_rounds(folder)):
            try:
                if round > len(there):
                    raise checkpoints.Damaged(f"{ROUNDS} ends at round {len(there)}")
                found = checkpoints.load(folder, round)
                break
            except checkpoints.Damaged as error:
                self._notices.append(f"checkpoint of round {round} cannot be used: {error}")
        start = 0 if found is None else found.round
        if found is None and there:
            self._notices.append(f"no usable checkpoint in '{self.path}': starting from round 1")
        elif found is not None:
            self._notices.append(f"going on after round {start}")
        lines.keep(self.path, start)
        self._not_copied.clear()
        checkpoints.drop_after(folder, start)
        return found

    def finish(self, results: Mapping[str, Any] | None = None) -> None:
        """Record that the run came to its end, and what was measured there.

        Raises:
            RunError: it cannot be written.
        """
        ended = {"status": FINISHED, "ended_at": now(), "results": plain(results or {})}
        write_info(self.path, {**self._info, **ended})
        self._info.update(ended)

    def close(self) -> None:
        """Release the folder; a second call does nothing."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, InputError) and self._is_new and not (self.path / ROUNDS).exists():
            # Nothing began: the folder must not stand in the way of the corrected command.
            with suppress(Exception):
                remove_run(self.path)
        elif error is not None and not self.finished:
            if isinstance(error, KeyboardInterrupt):
                ended: dict[str, Any] = {"status": INTERRUPTED}
            else:
                line = " ".join(str(error).split()) or type(error).__name__
                ended = {"status": "failed", "error": line}
            self._info.update(ended, ended_at=now())
            # The error itself is what the user has to see, not that this note failed too.
            with suppress(Exception):
                write_info(self.path, self._info)
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
