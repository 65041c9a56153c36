"""rounds.jsonl and its copy beside the checkpoints, from which lost lines are restored."""

from __future__ import annotations

import os
from pathlib import Path

from airtune.record.files import explained, write_durably
from airtune.record.folder import CHECKPOINTS
from airtune.record.reading import ROUNDS, complete_lines


def copy_of(folder: Path) -> Path:
    """Return where the copy of a run's rounds.jsonl lies."""
    return folder / CHECKPOINTS / ROUNDS


def restore(folder: Path) -> str | None:
    """Give rounds.jsonl back the lines that its copy has besides, and say so in one line.

    Nothing is done where the copy does not begin with the lines that are there.

    Raises:
        InputError, RunError: a file cannot be read or written.
    """
    there, _ = complete_lines(folder / ROUNDS)
    kept, _ = complete_lines(copy_of(folder))
    if len(kept) <= len(there) or kept[: len(there)] != there:
        return None
    write_durably(folder / ROUNDS, _joined(kept))
    return f"{ROUNDS} had lost {named(len(there) + 1, len(kept))}: restored from the checkpoint"


def named(first: int, last: int) -> str:
    """Return "round 4" or "rounds 4 to 6"."""
    return f"round {last}" if first == last else f"rounds {first} to {last}"


def keep(folder: Path, count: int) -> None:
    """Cut rounds.jsonl and its copy to their first lines; the copy gets what it lacks.

    The copy is cut first: after a kill in between it must not bring back what was cut.

    Raises:
        InputError, RunError: a file cannot be read or written.
    """
    lines, _ = complete_lines(folder / ROUNDS)
    copy = copy_of(folder)
    kept, size = complete_lines(copy)
    if kept != lines[:count] or (copy.exists() and copy.stat().st_size != size):
        with explained(copy, 0):
            copy.parent.mkdir(exist_ok=True)
        write_durably(copy, _joined(lines[:count]))
    _cut_to(folder / ROUNDS, sum(len(line) + 1 for line in lines[:count]))


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _cut_to(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size > size:
        with explained(path, 0), open(path, "rb+") as file:
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
