"""A study's runs as a few small archives: carried back, and put into a study's folder again."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from pathlib import Path

from airtune.errors import InputError
from airtune.record.checkpoint import saved_rounds
from airtune.record.files import write_durably
from airtune.record.folder import CHECKPOINTS, CLIENTS
from airtune.record.reading import FINISHED
from airtune.study.keys import RUNS

RECORDS = ("run.json", "rounds.jsonl")
"""What is kept of a finished run: no checkpoint, no adapter, no page."""
STREAMS = "packed"
"""The folder beside a study's runs with what each of them is in an archive."""
END = lzma.compress(bytes(1024))
"""Two blocks of zeros end a tar archive."""


def pack(study_folder: Path, out: Path, name: str, part_bytes: int) -> list[Path]:
    """Write the records of a study's finished runs as archives of at most `part_bytes` each.

    Archives of an earlier call are replaced. First come the study, what its search chose and the
    files that it names. No run is divided. A run is packed once: an archive is runs, each a tar
    of its own in xz, one behind the other, which `tar` and `tarfile` read as one.
    """
    told = [*sorted(study_folder.glob("*.json")), *sorted((study_folder / "files").glob("*"))]
    streams = [_stream({str(f.relative_to(study_folder)): f.read_bytes()}) for f in told]
    store = study_folder / STREAMS
    store.mkdir(parents=True, exist_ok=True)
    for folder in sorted((study_folder / RUNS).glob("*/")):
        kept = store / f"{folder.name}.xz"
        if not kept.is_file():
            files = _finished(folder)
            if not files:
                continue
            write_durably(kept, _stream(files))
        streams.append(kept.read_bytes())
    return _archives(streams, out, name, part_bytes)


def pack_begun(study_folder: Path, out: Path, name: str, part_bytes: int) -> list[Path]:
    """Write begun runs with their newest checkpoints as archives `NAME.begun.1.tar.xz` and so on.

    To be called when no run goes on. A run that has no checkpoint, or whose clients keep
    optimiser moments of their own beside it, is left out: it begins anew elsewhere.
    """
    folders = sorted((study_folder / RUNS).glob("*/"))
    streams = [_stream(files, preset=0) for folder in folders if (files := _begun(folder))]
    return _archives(streams, out, f"{name}.begun", part_bytes)


def can_travel(study_folder: Path, key: str) -> bool:
    """Return whether `pack_begun` packs a run."""
    return _can_go_on(study_folder / RUNS / key)


def _archives(streams: list[bytes], out: Path, name: str, part_bytes: int) -> list[Path]:
    """Write streams as `NAME.1.tar.xz` and so on, and remove those of before with higher numbers.

    A stream that is larger than a part is a part of its own.
    """
    groups: list[list[bytes]] = []
    for stream in streams:
        if not groups or sum(map(len, (*groups[-1], stream, END))) > part_bytes:
            groups.append([])
        groups[-1].append(stream)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.{number}.tar.xz" for number in range(1, len(groups) + 1)]
    for path, group in zip(paths, groups, strict=True):
        write_durably(path, b"".join([*group, END]))
    for old in {*out.glob(f"{name}.[0-9]*.tar.xz")} - {*paths}:
        old.unlink()
    return paths


def _finished(folder: Path) -> dict[str, bytes]:
    """Return a finished run's files by their path in the study; {} for any other folder."""
    try:
        return _files(folder, [folder / name for name in RECORDS]) if _has_ended(folder) else {}
    except OSError:
        return {}


def _has_ended(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / RECORDS[0]).read_bytes())["status"] == FINISHED)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _can_go_on(folder: Path) -> bool:
    """Return whether a run has begun, and all of its state is in its checkpoint."""
    saved = saved_rounds(folder / CHECKPOINTS)
    return bool(saved) and not _has_ended(folder) and not any((folder / CLIENTS).glob("*"))


def _begun(folder: Path) -> dict[str, bytes]:
    """Return what a begun run needs to go on, by its path in the study; {} where it cannot."""
    if not _can_go_on(folder):
        return {}
    saved = saved_rounds(folder / CHECKPOINTS)
    newest = folder / CHECKPOINTS / f"round-{saved[-1]:05d}"
    copy = folder / CHECKPOINTS / RECORDS[1]
    try:
        return _files(folder, [*(folder / name for name in RECORDS), copy, *newest.iterdir()])
    except OSError:
        return {}


def _files(folder: Path, paths: list[Path]) -> dict[str, bytes]:
    """Return a run's files, and what the study has noted of it, by their path in the study."""
    study = folder.parents[1]
    noted = folder.with_name(f"{folder.name}.json")
    there = [*paths, *([noted] if noted.is_file() else [])]
    return {str(path.relative_to(study)): path.read_bytes() for path in there}


def _stream(files: dict[str, bytes], preset: int = 6) -> bytes:
    """Return files as a tar without its end, in xz."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        end = archive.offset
    return lzma.compress(raw.getvalue()[:end], preset=preset)


def unpack(archives: Path, name: str, study_folder: Path) -> tuple[int, int]:
    """Put the runs of earlier calls into a study's folder.

    A run that is there already stays as it is: it has at least as many rounds. So finished runs
    come before begun ones.

    Returns:
        How many finished runs came, and how many begun ones.

    Raises:
        InputError: an archive was cut off or is damaged.
    """
    counts = []
    for pattern in (f"{name}.[0-9]*.tar.xz", f"{name}.begun.*.tar.xz"):
        before = _runs(study_folder)
        for path in sorted(archives.glob(pattern)):
            try:
                _extract(path, study_folder)
            except (EOFError, lzma.LZMAError, tarfile.TarError) as error:
                raise InputError(
                    f"{path}: {error}: it is cut off or damaged: carry it again, or remove it"
                ) from None
        counts.append(len(_runs(study_folder) - before))
    return counts[0], counts[1]


def _extract(path: Path, study_folder: Path) -> None:
    there = _runs(study_folder)
    with tarfile.open(path, mode="r:xz") as archive:
        # run.json says that a run is there: it comes last, should this be killed.
        for member in sorted(archive.getmembers(), key=lambda one: one.name.endswith(RECORDS[0])):
            if member.isfile() and not _is_there(member.name, study_folder, there):
                archive.extract(member, study_folder, filter="data")


def _runs(study_folder: Path) -> set[str]:
    return {file.parent.name for file in (study_folder / RUNS).glob(f"*/{RECORDS[0]}")}


def _is_there(member: str, study_folder: Path, runs: set[str]) -> bool:
    """Return whether the study has a file, or the run that it is of."""
    folder, *inside = Path(member).parts
    if folder == RUNS and len(inside) > 1:
        return inside[0] in runs
    return (study_folder / member).exists()
