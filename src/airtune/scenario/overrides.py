"""What is changed in a scenario's plain values before they are checked: `--set` and paths."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Sequence
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
    key, value = parsed_override(override)
    parts = key.split(".")
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


def parsed_override(override: str) -> tuple[str, Any]:
    """Return the key and the value of ``key.path=value``; raises `InputError`."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise InputError(f"--set '{override}': write key.path=value, e.g. cell.radius_m=400")
    try:
        return key.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), text.strip()  # an unquoted string, as a shell user writes it
    except (RecursionError, ValueError):  # brackets without end; Python's own limit of digits
        raise InputError(
            f"--set '{key}=…': a whole number has too many digits, or brackets are too deep"
        ) from None


def absolute_override(override: str, beside: Path | None) -> str:
    """Return an override whose paths mean the same in another working folder.

    Args:
        override: as on the command line.
        beside: the scenario file's folder; what lies there is found from anywhere. None for a
            built-in scenario.

    Raises:
        InputError: it is not key.path=value.
    """

    def located(key: str, path: str) -> str:
        file, mark, column = path.rpartition("#")
        if not (mark and key.endswith("_trace")) or os.path.exists(path):
            file, mark, column = path, "", ""
        if beside is not None and os.path.exists(beside / file):
            return path
        return f"{Path(file).resolve()}{mark}{column}" if _is_there(key, file) else path

    key, value = parsed_override(override)
    changed = with_paths({key: value}, located)
    add_plugins(changed, [], beside)
    return override if changed == {key: value} else f"{key}={toml_value(changed[key])}"


def _is_there(key: str, path: str) -> bool:
    # os.path says of what cannot be a path that it is not there; Path raises.
    if not os.path.exists(path):
        return False
    # The name of a built-in model or profile goes before a folder of that name.
    if key == "model.id":
        return (Path(path) / "config.json").is_file() or any(Path(path).glob("*.gguf"))
    return Path(path).is_file() or not key.endswith(".profile")


def toml_value(value: Any) -> str:
    """Return a plain value as TOML in one line, tables inline."""
    if isinstance(value, dict):
        parts = (f"{toml_value(key)} = {toml_value(part)}" for key, part in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # JSON's strings are TOML's, but for surrogate pairs and DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)


def resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make paths absolute where such a file lies in this folder.

    Args:
        values: tables of a scenario, or a study's settings with dotted keys; changed in place.
        folder: where the file that holds them lies.
    """

    def located(key: str, path: str) -> str:
        if (folder / path).exists():
            return str((folder / path).resolve())
        file, mark, column = path.rpartition("#")
        if mark and key.endswith("_trace") and (folder / file).exists():
            return f"{(folder / file).resolve()}#{column}"
        return path

    values.update(with_paths(values, located))


def with_paths(
    table: dict[str, Any], change: Callable[[str, str], str], prefix: str = ""
) -> dict[str, Any]:
    """Return settings with each text changed that may be a path.

    Args:
        table: nested tables, lists of tables and values; keys may be dotted.
        change: is given the dotted key and the path, and returns the new one.
        prefix: of the table's keys; the tables of a list have its name and their place.
    """

    def changed(key: str, value: Any) -> Any:
        if isinstance(value, str):
            return change(key, value) if PATHS.fullmatch(key) else value
        if isinstance(value, dict) and key.count(".") < 2:  # no path lies deeper
            return with_paths(value, change, f"{key}.")
        if isinstance(value, list):
            return [
                changed(f"{key}.{index}", one) if isinstance(one, dict) else one
                for index, one in enumerate(value)
            ]
        return value

    return {name: changed(f"{prefix}{name}", value) for name, value in table.items()}


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
