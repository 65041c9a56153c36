"""TOML as people write it: what cannot be parsed, and Windows paths in double quotes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from airtune.errors import InputError

DRIVE = re.compile(r'^\s*[\w."-]+\s*=\s*"(?P<path>[A-Za-z]:\\(?!\\)[^"\n]*)"', re.MULTILINE)
"""A key whose value begins like ``"C:\\temp"``, with a single backslash."""

ESCAPED = re.compile(r'"[^"]*\\[^"]*"')

LONGEST_SHOWN = 80


def parsed_toml(text: str, where: str) -> dict[str, Any]:
    r"""Return the values of a TOML text.

    Raises:
        InputError: it is no TOML, nested too deeply, holds a whole number of thousands of digits,
            or a Windows path whose backslashes TOML takes for escapes (``"C:\temp"`` would be read
            as C:, a tab and emp).
    """
    if (path := DRIVE.search(text)) is not None:
        line = text.count("\n", 0, path.start("path")) + 1
        raise InputError(f'{where}, line {line}: "{path["path"]}": {_hint(path["path"])}')
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = _escape_hint(text, str(error))
        raise InputError(f"{where}: not valid TOML: {error}{hint}") from None
    except RecursionError:
        raise InputError(f"{where}: not valid TOML: nested too deeply") from None
    except ValueError:  # Python's own limit of digits
        raise InputError(f"{where}: a whole number has too many digits") from None


def check_paths(values: dict[str, Any], where: str) -> None:
    """Refuse a path with a control character: a backslash that TOML read as an escape."""
    for key, path in _paths(values):
        if isinstance(path, str) and re.search(r"[\x00-\x1f\x7f]", path):
            raise InputError(
                f"{where}: {key} = {shown(path)}: {_hint('folder' + chr(92) + 'file')}"
            )


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep; too many digits
        return "…"
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _paths(values: dict[str, Any]) -> Iterator[tuple[str, object]]:
    named = {"task": ["source"], "model": ["id", "gguf_file"], "planning": ["costs"]}
    named |= {"participation": ["availability"]}
    for section, keys in named.items():
        table = values.get(section)
        if isinstance(table, dict):
            yield from ((f"{section}.{key}", table.get(key)) for key in keys)
    devices = values.get("devices")
    for index, device in enumerate(devices if isinstance(devices, list) else []):
        if isinstance(device, dict):
            for key in ("profile", "uplink_trace", "downlink_trace"):
                yield f"devices.{index}.{key}", device.get(key)


def _escape_hint(text: str, error: str) -> str:
    at = re.search(r"at line (\d+)", error)
    lines = text.splitlines()
    if at is None or int(at[1]) > len(lines):
        return ""
    found = ESCAPED.search(lines[int(at[1]) - 1])
    return "" if found is None else f"; {_hint('folder' + chr(92) + 'file')}"


def _hint(path: str) -> str:
    slashes = path.replace("\\", "/")
    return (
        f"in double quotes a backslash begins an escape; write '{path}' in single quotes, "
        f'or "{slashes}"'
    )
