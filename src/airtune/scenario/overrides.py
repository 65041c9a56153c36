"""What is changed in a scenario's plain values before they are checked: `--set` and paths."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from airtune.errors import InputError


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
    except (ValueError, RecursionError):
        value = text.strip()  # an unquoted string, as a shell user writes it
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

    def resolve(table: Any, key: str) -> None:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            candidate = folder / table[key]
            if candidate.exists():
                table[key] = str(candidate.resolve())

    resolve(values.get("task"), "source")
    resolve(values.get("model"), "id")
    devices = values.get("devices")
    for device in devices if isinstance(devices, list) else []:
        for key in ("profile", "uplink_trace", "downlink_trace"):
            resolve(device, key)
