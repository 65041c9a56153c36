"""Which run is which: a key for all that decides a record, and runs found by it.

What has the same key is the same run and is computed once, whichever methods, points or studies
in this folder ask for it. A key is a hash of:

- every key of the resolved scenario, defaults included, so that a changed default is noticed;
- the bytes of the plugin files, of device profiles, traces, tables of the channel, availability and
  costs that the scenario names;
- the format of the record.

A data file is named by its path: its content is not read here.

The hash changes whenever the scenario gets a further key, and the runs made before must still be
found. Each run keeps its resolved scenario (run.json), so the rule needs no list of versions: a
run made before is the one asked for where its own scenario, read by today's schema, has the same
key. Each key that it knows then has its own value, and each that it does not know the default.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from airtune.channel.trace import file_and_column
from airtune.errors import InputError
from airtune.merging.rules import normalizes_steps
from airtune.plugins.loading import is_path
from airtune.record.reading import FINISHED, FORMAT, RUN, read_info
from airtune.scenario import Scenario

RUNS = "runs"
"""The folder of all run directories, each named by the key that it was made with."""
DEVICE_FILES = ("profile", "uplink_trace", "downlink_trace")
CONTENTS = (("cell", "table"), ("participation", "availability"))
"""Keys whose files count by their content, wherever they lie."""
BEFORE: Mapping[str, Any] = {"aggregation.normalize_steps": False}
"""What runs did that were made before a key existed, where that is not the key's default: dotted
key of the scenario, value. A key whose default is what was done before is not listed."""


def folder_of(study_folder: Path, key: str) -> Path:
    """Return a run's directory in the study's folder."""
    return study_folder / RUNS / key


def key_of(scenario: Scenario, files: Sequence[str]) -> str:
    """Return the key of a run: its scenario and the hashes of the files that it names."""
    values = scenario.model_dump(mode="json")
    # A plugin file counts by its code, wherever it lies.
    values["plugins"] = [name for name in values["plugins"] if not is_path(name)]
    values["aggregation"]["normalize_steps"] = normalizes_steps(scenario)
    if scenario.planning.costs is not None:  # by its content, and only where it is read
        values["planning"]["costs"] = None if scenario.planning.knobs is None else "a file"
    for section, key in CONTENTS:
        if values[section][key] is not None:
            values[section][key] = "a file"
    known = {"record": FORMAT, "scenario": values, "files": list(files)}
    text = json.dumps(known, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hashes(scenario: Scenario) -> tuple[str, ...]:
    """Return the SHA-256 of each file of a scenario that its runs read, but for its data.

    Raises:
        InputError: one cannot be read.
    """
    named = [getattr(device, key) for device in scenario.devices for key in DEVICE_FILES]
    paths = [name for name in scenario.plugins if is_path(name)]
    files = [file_and_column(path)[0] for path in named if path is not None]
    paths += [path for path in files if Path(path).is_file()]
    paths += files_by_content(scenario.model_dump(mode="json"))
    return tuple(_file_hash(path) for path in paths)


def files_by_content(values: Mapping[str, Any]) -> list[str]:
    """Return the files of a resolved scenario that count by their content, wherever they lie."""
    planning = values["planning"]
    paths = [planning["costs"]] if planning["knobs"] is not None else []
    paths += [values[section][key] for section, key in CONTENTS]
    return [path for path in paths if path is not None]


def with_paths_of(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved scenario with another one's paths of files that count by their content."""
    moved = copy.deepcopy(dict(values))
    for section, key in (("planning", "costs"), *CONTENTS):
        moved[section][key] = other[section][key]
    return moved


def _file_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def made_before(study_folder: Path, keys: set[str]) -> dict[str, str]:
    """Return, of these keys, those whose run lies in a directory of another name: key → name.

    Raises:
        InputError: a newer version made a run in this folder.
    """
    here = {run.parent.name for run in (study_folder / RUNS).glob(f"*/{RUN}")}
    missing, others = keys - here, sorted(here - keys)
    if not missing:
        return {}
    found: dict[str, str] = {}
    finished: dict[str, str] = {}
    for name in others:
        folder = folder_of(study_folder, name)
        info = _info(folder)
        key = None if info is None else _key_today(info, sidecar(folder))
        if key in missing:
            found[key] = name
            if info is not None and info["status"] == FINISHED:
                finished[key] = name
    return {**found, **finished}


def _info(folder: Path) -> dict[str, Any] | None:
    """Return run.json; None where it is no record, or one of an older format."""
    try:
        return read_info(folder)
    except InputError:
        try:
            format = json.loads((folder / RUN).read_bytes())["format"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if isinstance(format, int) and format > FORMAT:
            raise
        return None


def _key_today(info: Mapping[str, Any], beside: Mapping[str, Any]) -> str | None:
    """Return the key that a run would get now; None where its scenario is none any more."""
    try:
        scenario = Scenario.model_validate(_as_it_ran(info["scenario"]))
        return key_of(scenario, beside.get("files", ()))
    except (ValidationError, TypeError, AttributeError, InputError):
        return None


def _as_it_ran(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's own scenario with what it did before a key existed (`BEFORE`)."""
    values = copy.deepcopy(dict(scenario))
    if values.get("participation", {}).get("rule") == "partial-fednova":  # it always normalised
        values.setdefault("aggregation", {}).setdefault("normalize_steps", True)
    for key, value in BEFORE.items():
        *path, last = key.split(".")
        table = values
        for part in path:
            table = table.setdefault(part, {})
        table.setdefault(last, value)
    return values


def sidecar_path(folder: Path) -> Path:
    """Return the file beside a run directory that says which files it read and how it ended."""
    return folder.with_name(f"{folder.name}.json")


def sidecar(folder: Path) -> dict[str, Any]:
    """Return what lies beside a run directory: `files`, `error`, `peak_bytes`, `wall_s`."""
    try:
        found = json.loads(sidecar_path(folder).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
