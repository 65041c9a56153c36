"""From a TOML file, or a built-in scenario's name, to a checked `Scenario`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from airtune.encoding import read_text
from airtune.errors import InputError, did_you_mean
from airtune.plugins import load_plugins
from airtune.scenario.overrides import add_plugins, apply_override, resolve_paths
from airtune.scenario.schema import DeviceSection, Scenario
from airtune.scenario.toml import check_paths, parsed_toml, shown


def builtin_scenarios() -> dict[str, str]:
    """Return the TOML text of each scenario shipped with the package, by name."""
    folder = resources.files("airtune.scenario") / "builtin"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text(encoding="utf-8") for f in files}


def load_scenario(
    source: str | Path, overrides: Sequence[str] = (), *, plugins: Sequence[str] = ()
) -> Scenario:
    """Read a scenario file, or a built-in scenario by name, with ``key.path=value`` overrides.

    Paths inside the file (task source, traces, profiles, model folder) are taken relative to
    the file's folder where such a file exists there, otherwise to the working folder.

    Args:
        source: the file, or the name.
        overrides: as on the command line.
        plugins: further plugins, as if the file named them: paths or modules.

    Raises:
        InputError: a plugin cannot be loaded, the file is missing or not TOML, a key is unknown,
            a value impossible.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides = '{overrides}': give a list, e.g. ['{overrides}']")
    text, folder = _read(source)
    values = parsed_toml(text, str(source))
    for override in overrides:
        apply_override(values, override)
    if "base" in values and "devices" not in values:
        raise InputError(f"{source} is a study, not a scenario: airtune study run {source}")
    check_paths(values, str(source))
    if folder is not None:
        resolve_paths(values, folder)
    add_plugins(values, plugins, folder)
    return scenario_from_dict(values, where=str(source))


def scenario_from_dict(values: dict[str, Any], *, where: str = "scenario") -> Scenario:
    """Load a scenario's plugins and validate plain values (as in run.json) into a `Scenario`.

    Raises:
        InputError: a plugin cannot be loaded, a key is unknown, a value impossible.
    """
    plugins = values.get("plugins")
    if isinstance(plugins, list | tuple) and all(isinstance(name, str) for name in plugins):
        load_plugins(plugins)
    try:
        return Scenario.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error.errors()[0])}") from None


def _read(source: str | Path) -> tuple[str, Path | None]:
    path = Path(source)
    builtin = builtin_scenarios()
    if str(source) in builtin and not path.is_file():
        return builtin[str(source)], None
    try:
        return read_text(path), path.parent
    except InputError as error:
        raise InputError(f"cannot read scenario '{source}': {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"cannot read scenario '{source}': {reason}; give a TOML file or one of the "
            f"built-in scenarios: {', '.join(builtin)}"
        ) from None


def _explain(error: ErrorDetails) -> str:
    """Turn pydantic's first complaint into one line in the user's own words."""
    key = ".".join(str(part) for part in error["loc"])
    written = error["input"]
    match error["type"]:
        case "extra_forbidden":
            return unknown_key(key, _fields_at(error["loc"][:-1]))
        case "missing":
            return f"'{key}' is missing"
        case "value_error":
            message = error["msg"].removeprefix("Value error, ")
            return f"{key}: {message}" if key else message
        case "too_short":
            return f"'{key}' is empty: at least one is needed"
        case "tuple_type":
            how = f"write [[{key}]], with two brackets" if key == "devices" else "must be a list"
            return f"{key} = {shown(written)}: {how}"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            message = message.replace("input should be", "must be")
            return f"{key} = {shown(written)}: {message}"


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return the line for a dotted key whose last part is none of the known ones."""
    hint = did_you_mean(key.rpartition(".")[2], known)
    return f"unknown key '{key}': {hint}known here: {', '.join(known)}"


def _fields_at(location: Sequence[str | int]) -> list[str]:
    section: Any = Scenario
    for part in location:
        if isinstance(part, int):
            continue
        section = DeviceSection if part == "devices" else section.model_fields[part].annotation
    return list(section.model_fields)
