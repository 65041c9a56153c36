"""Reading a run directory: finished, still running, or left by a run that was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.record.schema import RoundRecord, RunDescription, from_json

FORMAT = 1
"""Of run.json and what lies beside it: a folder of another format is not read."""
RUN, ROUNDS = "run.json", "rounds.jsonl"
FINISHED, INTERRUPTED, INCOMPLETE = "finished", "interrupted", "incomplete"


@dataclass(frozen=True)
class Record:
    """A run as it lies on disk.

    Attributes:
        path: the run directory.
        status: "running" (or killed), "finished", "failed", "interrupted", or "incomplete" where
            run.json says finished and rounds.jsonl has lost rounds since.
        method: the planning method.
        seed: the scenario's.
        scenario: every key, resolved.
        versions: of airtune, Python and the libraries, None where one is not installed.
        platform: of the machine that simulated it.
        started_at: UTC, ISO 8601.
        ended_at: UTC, ISO 8601; None unless it came to an end.
        error: the line that a failed run ended with.
        description: the cell and what was measured before training; None in the first moments.
        results: what the run measured at its end.
        rounds: those recorded so far.
        plugins: name and SHA-256 of each plugin that was loaded.
    """

    path: Path
    status: str
    method: str
    seed: int
    scenario: Mapping[str, Any]
    versions: Mapping[str, str | None]
    platform: Mapping[str, Any]
    started_at: str
    ended_at: str | None
    error: str | None
    description: RunDescription | None
    results: Mapping[str, Any]
    rounds: tuple[RoundRecord, ...]
    plugins: tuple[Mapping[str, str], ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == FINISHED

    @property
    def loss(self) -> str | None:
        """What rounds.jsonl has lost of a run that had finished, in one line; else None."""
        if self.status != INCOMPLETE:
            return None
        return (
            f"'{self.path}' holds a run that had finished, but {ROUNDS} has only "
            f"{len(self.rounds)} of its {self.scenario['rounds']} rounds: it does not count as "
            "finished; --resume restores or repeats the others"
        )


def read_record(folder: str | Path) -> Record:
    """Read a run directory; a last line that is still being written is passed over.

    Raises:
        InputError: there is no run in the folder, or a line is malformed (with its number).
    """
    path = Path(folder)
    info = read_info(path)
    lines, _ = complete_lines(path / ROUNDS)
    rounds = parsed_rounds(path / ROUNDS, lines)
    status = info["status"]
    if status == FINISHED and not is_whole(info["scenario"], rounds):
        status = INCOMPLETE
    cell = info.get("cell")
    description = None
    if cell is not None:
        description = from_json(RunDescription, cell, f"{path / RUN}: 'cell'")
    return Record(
        path=path,
        status=status,
        method=info["method"],
        seed=info["seed"],
        scenario=info["scenario"],
        versions=info["versions"],
        platform=info.get("platform", {}),
        started_at=info["started_at"],
        ended_at=info.get("ended_at"),
        error=info.get("error"),
        description=description,
        results=info.get("results") or {},
        rounds=rounds,
        plugins=tuple(info.get("plugins", ())),
    )


def is_whole(scenario: Mapping[str, Any], rounds: Sequence[RoundRecord]) -> bool:
    """Return whether these are all rounds of a finished run: as many as planned, or its time."""
    planned, budget_s = scenario.get("rounds"), scenario.get("time_budget_s")
    if not isinstance(planned, int) or len(rounds) >= planned:
        return True
    return budget_s is not None and bool(rounds) and rounds[-1].elapsed_s >= budget_s


def read_info(path: Path) -> dict[str, Any]:
    """Return run.json; raises `InputError` where there is none or it is not a run's."""
    if not path.is_dir():
        raise InputError(f"no run in '{path}': there is no such folder")
    try:
        info = json.loads((path / RUN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no run in '{path}': it has no {RUN}") from None
    except OSError as error:
        raise InputError(f"cannot read '{path / RUN}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"'{path / RUN}' is not JSON: {error}") from None
    expected = {
        "status": str, "method": str, "seed": int, "scenario": dict, "versions": dict,
        "started_at": str,
    }  # fmt: skip
    for key, kind in expected.items():
        if not isinstance(info, dict) or not isinstance(info.get(key), kind):
            raise InputError(f"'{path / RUN}' is not the record of a run: no usable '{key}'")
    if info.get("format") != FORMAT:
        raise InputError(
            f"'{path / RUN}' is of format {json.dumps(info.get('format'))}: this airtune "
            f"reads format {FORMAT}"
        )
    if not isinstance(info["scenario"].get("rounds"), int):
        raise InputError(f"'{path / RUN}' is not the record of a run: no usable 'scenario.rounds'")
    if not isinstance(info.get("cell"), dict | None):
        raise InputError(f"'{path / RUN}' is not the record of a run: no usable 'cell'")
    return info


def complete_lines(path: Path) -> tuple[list[bytes], int]:
    """Return the lines that end in a newline, and how many bytes they are together."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror}") from None
    end = data.rfind(b"\n") + 1
    return data[:end].split(b"\n")[:-1], end


def parsed_rounds(path: Path, lines: list[bytes]) -> tuple[RoundRecord, ...]:
    """Return the rounds of these lines; raises `InputError` with the line's number."""
    rounds = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {error}") from None
        record = from_json(RoundRecord, values, where)
        if record.round != number:
            raise InputError(f"{where}: 'round' is {record.round}, expected {number}")
        if not record.clients and not record.turns:
            raise InputError(f"{where}: 'clients' is empty")
        rounds.append(record)
    return tuple(rounds)
