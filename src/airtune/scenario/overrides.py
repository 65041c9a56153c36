"""What is changed in a scenario's plain values before they are checked: `--set` and paths."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.plugins.loading import is_path

PATHS = re.compile(
    r"task\.source|model\.id|cell\.table|planning\.costs|participation\.availability"
    r"|devices\.(\d+\.)?(profile|uplink_trace|downlink_trace)"
)
"""Keys whose value may be the path of a file or folder."""


def key_of(override: str) -> str:
    """Return the key that ``key.path=value`` sets."""
    return override.partition("=")[0].strip()


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one key of nested tables; raises `InputError`."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError(f"--set '{override}': write key.path=value, e.g. cell.radius_m=400")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # an unquoted string, as a shell user writes it
    except (RecursionError, ValueError):  # brackets without end; Python's own limit of digits
        raise InputError(
            f"--set '{key}=…': a whole number has too many digits, or brackets are too deep"
        ) from None
    table: Any = values
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(table, list):
            if not part.isdecimal() or int(part) >= len(table):
                raise InputError(f"--set '{override}': '{part}' is not an index below {len(table)}")
            index: Any = int(part)
        elif isinstance(table, dict):
            index = part
            if not last:
                table.setdefault(part, {})
        else:
            raise InputError(f"--set '{override}': '{'.'.join(parts[:depth])}' is not a table")
        if last:
            table[index] = value
        else:
            table = table[index]


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make a scenario's paths absolute where such a file lies in its folder."""
    for section, table in values.items():
        # Of `devices` a list; in a study's settings a table by number.
        tables = list(table.values()) if section == "devices" and isinstance(table, dict) else table
        for one in tables if isinstance(tables, list) else [tables]:
            for key in one if isinstance(one, dict) else ():
                one[key] = located(f"{section}.{key}", one[key], folder)


def located(key: str, value: Any, folder: Path) -> Any:
    """Return a setting; absolute where it is the path of a file in this folder.

    Args:
        key: dotted, as `planning.costs` or `devices.0.profile`.
        value: as given.
        folder: where the file that holds the setting lies.
    """
    if not isinstance(value, str) or not PATHS.fullmatch(key):
        return value
    if (folder / value).exists():
        return str((folder / value).resolve())
    file, mark, column = value.rpartition("#")
    if mark and key.endswith("_trace") and (folder / file).exists():
        return f"{(folder / file).resolve()}#{column}"
    return value


def add_plugins(values: dict[str, Any], more: Sequence[str], folder: Path | None) -> None:
    """Add plugins to a scenario's own, each once; the paths of files become absolute.

    A path of the scenario is taken relative to its folder where such a file exists there; the
    others are relative to the working folder.
    """

    def located(name: str, beside: Path | None) -> str:
        if not is_path(name):
            return name
        if beside is not None and (beside / name).exists():
            return str((beside / name).resolve())
        return str(Path(name).resolve())

    own = values.get("plugins", [])
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        return  # validation says what is wrong with it
    names = [located(name, folder) for name in own] + [located(name, None) for name in more]
    if names:
        values["plugins"] = list(dict.fromkeys(names))
