"""TOML as people write it: what cannot be parsed, and Windows paths in double quotes."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from airtune.errors import InputError
from airtune.scenario.overrides import with_paths

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

    def checked(key: str, path: str) -> str:
        if re.search(r"[\x00-\x1f\x7f]", path):
            raise InputError(
                f"{where}: {key} = {shown(path)}: {_hint('folder' + chr(92) + 'file')}"
            )
        return path

    with_paths(values, checked)
    model = values.get("model")
    name = model.get("gguf_file") if isinstance(model, dict) else None
    if isinstance(name, str):  # a file in the model's folder, and so no path of this file's folder
        checked("model.gguf_file", name)


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # too deep; too many digits
        return "…"
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


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
