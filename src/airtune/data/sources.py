"""Where data comes from: JSON-lines and CSV files, folders of them, and hub datasets.

Every row comes with the place it was read from, so that a refusal can name file and line.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airtune.errors import InputError

JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_LINES, ".csv")
PROBE_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class Files:
    """The files of a task: the train part, and the test part where there is one."""

    train: Path
    test: Path | None


@dataclass(frozen=True)
class HubData:
    """A hub dataset, opened: its splits are indexable sequences of rows."""

    id: str
    train: Any
    test: Any | None


def open_source(source: str, *, config: str | None = None) -> Files | HubData:
    """Find a file, a folder with ``train.*`` (and ``test.*``), or a hub dataset.

    Args:
        source: a path, or a hub id ``owner/name`` where no such path exists.
        config: the hub dataset's configuration.

    Raises:
        InputError: there is no such file, no train file in the folder, or no such dataset.
    """
    path = Path(source)
    if path.is_dir():
        return _files_of(path)
    if path.exists():
        return Files(path, None)
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source) and path.suffix not in SUFFIXES:
        return _open_hub(source, config)
    raise InputError(
        f"task.source = '{source}': no such file or folder; give a {_allowed()} file, a folder "
        "with a train file, or a hub id such as openai/gsm8k"
    )


def _allowed() -> str:
    return ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"


def _files_of(folder: Path) -> Files:
    def part(name: str) -> Path | None:
        candidates = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        return next((path for path in candidates if path.is_file()), None)

    train = part("train")
    if train is None:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise InputError(
            f"task.source = '{folder}': no train.jsonl or train.csv there, but {names}"
        )
    return Files(train, part("test"))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) for each line that is not blank."""
    with _readable(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise InputError(f"{place}: not UTF-8 text") from None
            except ValueError as error:
                raise InputError(f"{place}: not a JSON object: {error}") from None
            if not isinstance(value, dict):
                raise InputError(
                    f"{place}: expected one JSON object a line, found {type(value).__name__}"
                )
            yield place, value


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, fields) for each record that is not empty; the header is not told apart."""
    with _readable(path), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            first = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise InputError(f"{path}, line {first}: not a CSV record: {error}") from None
            except UnicodeDecodeError:
                # The decoder reads ahead by blocks, so only the neighbourhood is known.
                raise InputError(f"{path}, after line {first - 1}: not UTF-8 text") from None
            if fields:
                yield f"{path}, line {first}", fields


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row by column name) of a JSON-lines file, or of a CSV file with a header."""
    if path.suffix in JSON_LINES:
        yield from json_lines(path)
        return
    if path.suffix != ".csv":
        raise InputError(f"{path}: cannot read '{path.suffix}'; give a {_allowed()} file")
    records = csv_rows(path)
    _, header = next(records, ("", []))
    for place, fields in records:
        if len(fields) != len(header):
            raise InputError(
                f"{place}: {len(fields)} fields, but the header has {len(header)}: "
                f"{', '.join(header)}"
            )
        yield place, dict(zip(header, fields, strict=True))


def text_of(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return a column's value as text.

    Raises:
        InputError: the column is missing, empty, or neither text nor a number.
    """
    if column not in row:
        there = ", ".join(map(str, row)) or "none"
        raise InputError(f"{place}: no column '{column}'; columns there: {there}")
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{place}: '{column}' must be text, found {json.dumps(value)[:40]}")
    text = str(value).strip()
    if not text:
        raise InputError(f"{place}: '{column}' is empty")
    return text


def hub_rows(
    data: HubData, part: Any, rng: np.random.Generator
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a hub split in random order, reading only what is asked for."""
    for index in rng.permutation(len(part)):
        yield f"{data.id}, row {index}", part[int(index)]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _open_hub(id: str, config: str | None) -> HubData:
    import datasets  # seconds to import, and only hub data needs it

    with _offline_unless_reachable() as reachable:
        try:
            splits = datasets.load_dataset(id, config)
        except Exception as error:  # the hub client's errors have no common base
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            where = "from the hub" if reachable else "offline: the hub cannot be reached"
            raise InputError(
                f"cannot have the dataset '{id}' {where}, and it is not in the local cache "
                f"({reason[:160]}); connect, or set task.source to a local {_allowed()} file"
            ) from None
    if "train" not in splits:
        raise InputError(f"the dataset '{id}' has no train split, but {', '.join(splits)}")
    return HubData(id, splits["train"], splits.get("test"))


@contextmanager
def _offline_unless_reachable() -> Iterator[bool]:
    """Switch the hub client to offline mode when one short request fails.

    Its own retries take half a minute to say so, and then without a look at the local cache.
    """
    import datasets
    import huggingface_hub as hub

    reachable = not hub.constants.HF_HUB_OFFLINE
    if reachable:
        try:
            hub.get_session().head(hub.constants.ENDPOINT, timeout=PROBE_TIMEOUT_S)
        except Exception:  # of whatever HTTP library the client uses
            reachable = False
    before = hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not reachable:
        hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield reachable
    finally:
        hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
