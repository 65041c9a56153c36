"""Files that are too large for one transfer: cut into parts, copied as they arrive, and joined."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from airtune.errors import InputError

MANIFEST = ".parts.json"
"""Ends the name of the file that says what the parts make: bytes, SHA-256, names in order."""


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
