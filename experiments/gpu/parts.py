"""Files that travel: a model in parts, and a study's records as one small archive."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

from airtune.errors import InputError
from airtune.record.files import write_durably

MANIFEST = ".parts.json"
"""Ends the name of the file that says what the parts make: bytes, SHA-256, names in order."""
RECORDS = ("run.json", "rounds.jsonl")
"""What is kept of a run: no checkpoint, no adapter, no page."""

LEAST_RATIO = 2
"""Records are decimal digits and the same keys again and again: at least so well do they pack."""


def split(file: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Cut a file into parts that fit a transfer, with a manifest beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Path] = []
    with file.open("rb") as whole:
        while piece := whole.read(part_bytes):
            parts.append(folder / f"{file.name}.part{len(parts) + 1}")
            parts[-1].write_bytes(piece)
    told = {
        "bytes": file.stat().st_size,
        "sha256": digest_of(file),
        "parts": [part.name for part in parts],
    }
    manifest = folder / f"{file.name}{MANIFEST}"
    manifest.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return [*parts, manifest]


def take(source: Path, store: Path) -> None:
    """Copy what has arrived into the folder that stays, each file once.

    Parts of a model may arrive one call after the other: those of an earlier call are kept.
    """
    for path in sorted(source.rglob("*")):
        target = store / path.relative_to(source)
        if path.is_dir() or (target.is_file() and target.stat().st_size == path.stat().st_size):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(path, partial)
        partial.replace(target)


def join(store: Path) -> list[str]:
    """Put files together whose parts are all there; return what is still missing, a line each.

    Raises:
        InputError: what was put together is not the file that was cut.
    """
    missing = []
    for manifest in sorted(store.rglob(f"*{MANIFEST}")):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        target = manifest.with_name(manifest.name.removesuffix(MANIFEST))
        if target.is_file():
            continue
        parts = [manifest.with_name(name) for name in told["parts"]]
        absent = [part.name for part in parts if not part.is_file()]
        if absent:
            missing.append(
                f"{target.name}: of its {len(parts)} parts not here: {', '.join(absent)}"
            )
            continue
        partial = target.with_name(f".{target.name}.partial")
        with partial.open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        digest = digest_of(partial)
        if digest != told["sha256"]:
            for damaged in (partial, *parts):  # so that they are taken when they come again
                damaged.unlink()
            raise InputError(
                f"{target.name}, put together from {len(parts)} parts, has SHA-256 {digest}, "
                f"not {told['sha256']}: a part is damaged; they were removed here: cut the file "
                "again and carry the parts again"
            )
        partial.replace(target)
        for part in parts:  # the space is needed, and they are where they came from
            part.unlink()
    return missing


def digest_of(file: Path) -> str:
    """Return a file's SHA-256."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def pack(study_folder: Path, out: Path, name: str, part_bytes: int) -> list[Path]:
    """Write the records of a study's finished runs as archives of at most `part_bytes` each.

    Archives of an earlier call are replaced. First come the study, what its search chose and the
    files that it names. No file and no run's record is divided.
    """
    out.mkdir(parents=True, exist_ok=True)
    told = [*sorted(study_folder.glob("*.json")), *sorted((study_folder / "files").glob("*"))]
    records = (_records(folder) for folder in sorted((study_folder / "runs").glob("*")))
    groups: list[dict[str, bytes]] = [{}]
    for files in (
        *({str(file.relative_to(study_folder)): file.read_bytes()} for file in told),
        *records,
    ):
        both = sum(map(len, (*groups[-1].values(), *files.values())))
        if both > LEAST_RATIO * part_bytes and groups[-1]:
            groups.append({})
        groups[-1] |= files
    for old in out.glob(f"{name}.*.tar.xz"):
        old.unlink()
    paths = []
    for number, files in enumerate(groups, start=1):
        paths.append(out / f"{name}.{number}.tar.xz")
        write_durably(paths[-1], _archive(files))
    return paths


def _records(folder: Path) -> dict[str, bytes]:
    """Return a finished run's files by their path in the study; {} for any other folder."""
    try:
        info = json.loads((folder / RECORDS[0]).read_bytes())
        if info["status"] != "finished":
            return {}
        files = {f"runs/{folder.name}/{name}": (folder / name).read_bytes() for name in RECORDS}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    told = folder.with_name(f"{folder.name}.json")
    if told.is_file():
        files[f"runs/{told.name}"] = told.read_bytes()
    return files


def _archive(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return lzma.compress(raw.getvalue(), preset=6)


def unpack(archives: Path, name: str, study_folder: Path) -> int:
    """Put the records of earlier calls into a study's folder; return how many runs came.

    A run that is there already stays as it is.
    """
    came = 0
    for path in sorted(archives.glob(f"{name}.*.tar.xz")):
        with tarfile.open(path, mode="r:xz") as archive:
            for member in archive.getmembers():
                target = study_folder / member.name
                if target.exists() or not member.isfile():
                    continue
                if target.name in RECORDS and target.name != RECORDS[0]:
                    continue  # with its run.json, below
                if target.name == RECORDS[0]:
                    rounds = member.name.replace(RECORDS[0], RECORDS[1])
                    archive.extract(rounds, study_folder, filter="data")
                    came += 1
                archive.extract(member, study_folder, filter="data")
    return came
