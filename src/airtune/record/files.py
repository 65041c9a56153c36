"""Writing files so that a kill or a full disk at any moment loses nothing that was there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from airtune.errors import InputError, RunError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK = ".lock"
TEMPORARY = ".tmp-"
"""Start of the names of what is being written; left behind only by a kill."""
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# Windows opens no folder as a file, and would write "\r\n" through a descriptor in text mode.
_FOLDERS_ARE_FLUSHED = os.name == "posix"
_BINARY: int = getattr(os, "O_BINARY", 0)


@contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Turn a failure to write `size` bytes to `path` into one line.

    Raises:
        RunError: for any OSError; names the path, and on a full disk what is free and needed.
    """
    try:
        yield
    except OSError as error:
        kept = "what was recorded is kept"
        if error.errno in _FULL:
            raise RunError(
                f"no space left to write '{path}': {_size(size)} needed, "
                f"{_size(_free_bytes(path))} free; {kept}: make room and go on with --resume"
            ) from None
        reason = error.strerror or type(error).__name__
        raise RunError(f"cannot write '{path}': {reason}; {kept}") from None


def write_durably(path: Path, data: bytes) -> None:
    """Replace the file by `data` in one step: readers see the old or the new, never a part.

    Written beside it, flushed to the device, renamed; then the folder itself is flushed,
    without which the rename may not survive a power cut.

    Raises:
        RunError: the file cannot be written; the old one is untouched.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with explained(path, len(data)):
        try:
            write_flushed(temporary, data)
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        flush_folder(path.parent)


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and wait until the device has it; raises OSError."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append_line(path: Path, line: str) -> None:
    """Add one line and wait until the device has it; a part of a line is taken back.

    Raises:
        RunError: it cannot be written; the lines before it are untouched.
    """
    data = (line + "\n").encode()
    with explained(path, len(data)):
        created = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        try:
            before = os.fstat(descriptor).st_size
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if created:
            flush_folder(path.parent)


def _write_all(descriptor: int, data: bytes) -> None:
    # A nearly full disk takes a part and only then says that it is full.
    while data:
        data = data[os.write(descriptor, data) :]


def flush_folder(folder: Path) -> None:
    """Wait until the device has the folder's list of names; raises OSError.

    On Windows nothing is done: there a folder cannot be flushed, and after a power cut (not
    after a kill) the last rename may be missing.
    """
    if not _FOLDERS_ARE_FLUSHED:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> BaseFileLock:
    """Take the folder for this process and return the lock; `release()` gives it back.

    The system releases it when the process ends in whatever way, so that a killed run never
    stays locked.

    Raises:
        InputError: another process (or another open run of this one) has it, or the folder
            cannot be written to.
    """
    # Not at the top: reading a record needs no lock.
    import filelock

    lock = filelock.FileLock(folder / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(
            f"another process is writing to '{folder}': wait until it has ended, or give "
            "another --out"
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot write to '{folder}': {reason}") from None
    return lock


def _free_bytes(path: Path) -> int:
    folder = path
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
