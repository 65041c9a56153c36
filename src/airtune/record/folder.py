"""What an output folder may hold: nothing, this run, or what must not be touched."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from airtune.errors import InputError
from airtune.record.files import LOCK, TEMPORARY, explained, flush_folder
from airtune.record.reading import ROUNDS, RUN, read_info

CHECKPOINTS, ADAPTER, REPORT = "checkpoint", "adapter", "report.html"
CLIENTS = "clients"
"""Optimiser moments of clients, where not all of them take part in every round."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def make_folder(path: Path, option: str = "--out") -> None:
    """Make the folder that an option names where it does not exist; raises `InputError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{option} '{path}' is a file: give a folder") from None
    except OSError as error:
        raise InputError(f"cannot make the folder '{path}': {error.strerror}") from None


def make_closed_folder(path: Path, option: str) -> None:
    """The same, readable by its owner alone; raises `InputError`."""
    make_folder(path, option)
    try:
        path.chmod(0o700)
    except OSError as error:
        raise InputError(
            f"{option} '{path}' cannot be closed to others: {error.strerror}; give a folder of "
            "your own"
        ) from None


def foreign(path: Path) -> list[str]:
    """Return the names in the folder that a run does not leave before its run.json exists."""
    names = (entry.name for entry in path.iterdir())
    return sorted(name for name in names if name != LOCK and not name.startswith(TEMPORARY))


def visible(path: Path) -> list[str]:
    """Return the names in a folder, if there is one; hidden ones are the system's, or our locks."""
    return sorted(p.name for p in path.iterdir() if p.name[0] != ".") if path.is_dir() else []


def require_unused(path: Path) -> None:
    """Refuse a folder that holds a run or other files; raises `InputError`."""
    names = foreign(path)
    if RUN in names:
        info = read_info(path)
        what = f"{info['scenario'].get('name')}, {info['method']}, {info['status']}"
        raise InputError(
            f"'{path}' already holds a run ({what}): go on with --resume, throw it away with "
            "--replace, or give another --out (from Python: resume=True, replace=True, out=…)"
        )
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"'{path}' is not empty (it holds '{names[0]}'{more}): give a new folder with --out"
        )


def remove_run(path: Path) -> None:
    """Remove what a run writes, run.json last, so that after a kill the rest is still a run.

    Raises:
        RunError: something cannot be removed.
    """
    with explained(path, 0):
        for name in (CHECKPOINTS, CLIENTS):
            shutil.rmtree(path / name, ignore_errors=True)
        for name in _ADAPTER_FILES:
            (path / ADAPTER / name).unlink(missing_ok=True)
        with suppress(OSError):  # not there, or the user keeps something else in it
            (path / ADAPTER).rmdir()
        for name in (REPORT, ROUNDS, RUN):
            (path / name).unlink(missing_ok=True)
        flush_folder(path)
