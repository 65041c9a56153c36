"""The study's folder: what was asked, what the search chose, where the runs lie.

study.json    the study, resolved, and the plugin files
files/        copies of costs, availability and channel tables: the folder can be read elsewhere,
              unless the study names files of device profiles or traces
search.json   each method's searched values, and the loss that chose them
runs/KEY/     one run directory a run (docs/record.md); beside it KEY.json: how it ended
report.html   the page;  tables/  CSV, Parquet, LaTeX;  figures/  SVG and PDF
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.plugins import load_plugins
from airtune.record.files import write_durably
from airtune.record.folder import visible
from airtune.study.jobs import plugin_path
from airtune.study.loading import study_of
from airtune.study.schema import Study

FORMAT = 1
STUDY, SEARCH, FILES = "study.json", "search.json", "files"


def save_study(
    folder: Path, study: Study, plugins: Sequence[str], files: Iterable[str] = ()
) -> None:
    """Write study.json; the folder may hold an earlier state of the same study.

    Args:
        folder: the study's.
        study: resolved.
        plugins: files with the user's own methods.
        files: that its scenarios name and that count by their content; they are copied.

    Raises:
        InputError: the folder holds another study, or files and no study.
    """
    if (folder / STUDY).exists():
        before, _ = read_study(folder)
        if (before.name, before.base_values.get("name")) != (
            study.name, study.base_values.get("name"),
        ):  # fmt: skip
            raise InputError(
                f"'{folder}' holds another study: '{before.name}' on "
                f"'{before.base_values.get('name')}', not '{study.name}' on "
                f"'{study.base_values.get('name')}': give another --out"
            )
    elif names := visible(folder):
        raise InputError(
            f"'{folder}' holds '{names[0]}' and no study: give a new folder with --out"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out '{folder}' is no folder that can be made: {error.strerror}"
        ) from None
    values = {
        "format": FORMAT,
        "study": study.model_dump(mode="json"),
        "plugins": [plugin_path(plugin) for plugin in plugins],
        "files": {path: _kept(Path(path), folder / FILES) for path in dict.fromkeys(files)},
    }
    _write(folder / STUDY, values)


def read_study(folder: Path) -> tuple[Study, list[str]]:
    """Return the study of a folder and its plugin files.

    Raises:
        InputError: there is none, a newer version wrote it, or a plugin cannot be loaded.
    """
    values = _read(folder / STUDY)
    if values is None:
        raise InputError(f"no study in '{folder}': it has no {STUDY}")
    if values.get("format") != FORMAT:
        raise InputError(
            f"'{folder / STUDY}' has format {values.get('format')!r}; this version reads {FORMAT}: "
            "update airtune, or give another --out"
        )
    copies = {
        path: str((folder / FILES / name).resolve())
        for path, name in values.get("files", {}).items()
        if _name_of(Path(path)) != name
    }
    resolved, plugins = _with_copies(values["study"], copies), list(values.get("plugins", []))
    load_plugins(plugins)  # the base scenario may name what they add
    return study_of(resolved, where=str(folder / STUDY)), plugins


def _kept(file: Path, folder: Path) -> str:
    """Copy a file under a name that says its content too; return the name."""
    name = _name_of(file)
    assert name is not None  # the keys of the runs have its hash
    if not (folder / name).is_file():
        folder.mkdir(exist_ok=True)
        write_durably(folder / name, file.read_bytes())
    return name


def _name_of(file: Path) -> str | None:
    """Return the name of a file's copy; None where it is not there or cannot be read."""
    try:
        return f"{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}-{file.name}"
    except OSError:
        return None


def _with_copies(values: Any, copies: Mapping[str, str]) -> Any:
    """Return a study's values with the copies of files that are not here or have changed."""
    if isinstance(values, dict):
        return {key: _with_copies(value, copies) for key, value in values.items()}
    if isinstance(values, list):
        return [_with_copies(value, copies) for value in values]
    return copies.get(values, values) if isinstance(values, str) else values


def save_search(folder: Path, chosen: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what the search chose."""
    _write(folder / SEARCH, chosen)


def read_search(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Return each method's searched values; None where no search has ended here."""
    found = _read(folder / SEARCH)
    return None if found is None else {name: one["values"] for name, one in found.items()}


def _write(path: Path, values: Any) -> None:
    write_durably(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"'{path}' is not of a study")
    return found
