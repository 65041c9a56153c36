"""From a study file, or a shipped study's name, to a checked `Study`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from airtune.encoding import read_text
from airtune.errors import InputError, did_you_mean
from airtune.planning import METHODS
from airtune.scenario import Scenario, builtin_scenarios, scenario_from_dict
from airtune.scenario.loading import unknown_key
from airtune.scenario.overrides import add_plugins, parsed_override, resolve_paths
from airtune.scenario.toml import check_paths, parsed_toml
from airtune.study.methods import shipped_sets
from airtune.study.schema import Budget, Search, Study, StudyAxis, StudyMethod

KEYS = (
    "name", "description", "base", "set", "include", "methods", "seeds", "axes", "crossed",
    "search", "tuned", "budget", "reference", "shared_bytes",
)  # fmt: skip
_TABLES: dict[str, type[BaseModel]] = {
    "budget": Budget,
    "methods": StudyMethod,
    "axes": StudyAxis,
    "search": Search,
}


def builtin_studies() -> dict[str, str]:
    """Return the TOML text of each study shipped with the package, by name."""
    folder = resources.files("airtune.study") / "builtin"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text(encoding="utf-8") for f in files}


def load_study(source: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, or a shipped study by name.

    A base scenario that is a file is looked for in the study's folder, then in the working folder.

    Args:
        source: the file or the name.
        overrides: `key=value` changes of the scenario for every method.

    Raises:
        InputError: a file is missing or not TOML, a key is unknown, a value impossible, a method
            given twice.
    """
    path, builtin = Path(source), builtin_studies()
    if str(source) in builtin and not path.is_file():
        text, folder = builtin[str(source)], None
    else:
        text, folder = _text(path, "study", builtin), path.parent
    try:
        values = parsed_toml(text, str(source))
    except InputError as error:
        twice = re.search(r"\[methods\.([^\]]+)\]", _line(text, str(error)))
        if twice:
            raise InputError(f"{source}: the method '{twice[1]}' is given twice") from None
        raise
    unknown = [key for key in values if key not in KEYS]
    if "base" not in values and any(key in Scenario.model_fields for key in unknown):
        raise InputError(
            f"{source} is a scenario, not a study: write a study file with base = "
            f'"{source}", seeds = "0-4" and include = ["fedit", "exact"], say (docs/study.md)'
        )
    if unknown:
        raise InputError(f"{source}: {unknown_key(unknown[0], KEYS)}")
    if not isinstance(values.get("base"), str):
        raise InputError(f"{source}: 'base' is missing: a scenario file, or one of "
                         f"{', '.join(builtin_scenarios())}")  # fmt: skip
    try:
        values["base_values"] = scenario_values(values["base"], folder)
    except InputError as error:
        raise InputError(f"{source}: base: {error}") from None
    included = values.pop("include", [])
    values["methods"] = _methods(values.get("methods", {}), included, str(source))
    values["seeds"] = seeds_of(values.get("seeds", []), f"{source}: seeds")
    values["set"] = _settings(values, f"{source}: set")
    axes, tuned = values.get("axes", {}), values.get("tuned", {})
    if not isinstance(axes, dict):
        raise InputError(f"{source}: axes = {axes!r}: write a table [axes]")
    if not isinstance(tuned, dict) or not all(isinstance(one, dict) for one in tuned.values()):
        raise InputError(f"{source}: tuned = {tuned!r}: write [tuned] with METHOD = {{ KEY = … }}")
    values["axes"] = {name: {"points": _points(name, axis)} for name, axis in axes.items()}
    if folder is not None:
        _locate(values, folder)
    changed = overridden(overrides)
    values["set"] |= changed  # a shell's paths are those of the working folder
    if isinstance(values.get("search"), dict) and isinstance(values["search"].get("keys"), dict):
        values["search"]["keys"] = flat(values["search"]["keys"])
    values["tuned"] = {name: flat(one) for name, one in tuned.items()}
    study = study_of(values, where=str(source))
    _check_changed(study, changed)
    return study


def study_from(
    scenario: str, methods: Sequence[str], seeds: str, overrides: Sequence[str] = ()
) -> Study:
    """Return the study that `airtune compare SCENARIO --methods … --seeds …` means.

    Args:
        scenario: a file, or the name of a built-in scenario.
        methods: shipped sets, shipped methods, or planning methods of the scenario as it is.
        seeds: e.g. `0-4`.
        overrides: `key=value` changes for every method.

    Raises:
        InputError: a name is unknown or given twice, or the seeds are none.
    """
    shipped = shipped_sets()
    every = {*shipped, *(name for one in shipped.values() for name in one)}
    found: dict[str, StudyMethod] = {}
    for name in methods:
        if name not in every and METHODS.has(name):
            kind: Literal["joint", "baseline"] = "joint" if METHODS[name].prunes else "baseline"
            chosen = {name: StudyMethod(kind=kind, set={"planning.method": name})}
        else:
            chosen = chosen_methods([name], "--methods")
        for one, method in chosen.items():
            if one in found:
                raise InputError(f"--methods: the method '{one}' is given twice")
            found[one] = method
    values, changed = scenario_values(scenario), overridden(overrides)
    study = study_of(
        {
            "name": values["name"],
            "base": scenario,
            "base_values": values,
            "methods": {name: method.model_dump() for name, method in found.items()},
            "seeds": seeds_of(seeds, "--seeds"),
            "set": changed,
        },
        where=scenario,
    )
    _check_changed(study, changed)
    return study


def study_of(values: Mapping[str, Any], *, where: str = "study") -> Study:
    """Check plain values (as in study.json) and return the study; raises `InputError`."""
    try:
        return Study.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":
            message = first["msg"].removeprefix("Value error, ")
            text = f"{key}: {message}" if key else message
        elif first["type"] == "extra_forbidden":
            table = _TABLES.get(str(first["loc"][0]), Study)
            text = unknown_key(key, list(table.model_fields))
        elif first["type"] == "missing":
            text = f"'{key}' is missing"
        elif first["type"] == "too_short":
            text = f"'{key}' is empty: at least one is needed"
        else:
            message = first["msg"][0].lower() + first["msg"][1:]
            text = f"{key} = {first['input']!r}: {message}"
        raise InputError(f"{where}: {text}") from None


def scenario_values(base: str, folder: Path | None = None) -> dict[str, Any]:
    """Return the plain values of the base scenario, paths in it made absolute; checked once."""
    builtin = builtin_scenarios()
    path = Path(base)
    if folder is not None and (folder / base).is_file():
        path = folder / base
    if not path.is_file() and base in builtin:
        values = parsed_toml(builtin[base], base)
    else:
        values = parsed_toml(_text(path, "scenario", builtin), str(path))
        check_paths(values, str(path))
        resolve_paths(values, path.parent)
        add_plugins(values, [], path.parent)
    scenario_from_dict(values, where=base)
    return values


def seeds_of(given: Any, where: str) -> tuple[int, ...]:
    """Return the seeds of a list, or of a text like `0-4` or `0,1,7`; raises `InputError`."""
    if isinstance(given, str):
        found: list[int] = []
        for part in given.split(","):
            match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
            if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
                raise InputError(f"{where} '{given}': give whole numbers, e.g. 0-4 or 0,1,7")
            found += range(int(match[1]), int(match[2] or match[1]) + 1)
        given = found
    if not isinstance(given, list) or not given:
        raise InputError(f'{where}: no seeds: give at least one, e.g. [0, 1, 2] or "0-4"')
    for seed in given:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise InputError(f"{where}: {seed!r} is not a seed: whole numbers from 0 on")
        if given.count(seed) > 1:
            raise InputError(f"{where}: {seed} is given twice")
    return tuple(given)


def chosen_methods(names: Sequence[str], where: str) -> dict[str, StudyMethod]:
    """Return methods by name; the name of a shipped set stands for all of its methods.

    Raises:
        InputError: a name is unknown, or a method is named twice.
    """
    sets = shipped_sets()
    every = {name: method for one in sets.values() for name, method in one.items()}
    found: dict[str, StudyMethod] = {}
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{where} {name!r}: give names of sets and methods")
        if name not in sets and name not in every:
            hint = did_you_mean(name, [*sets, *every])
            raise InputError(
                f"{where} '{name}': {hint}allowed are the sets {', '.join(sets)} and the methods "
                f"{', '.join(every)}"
            )
        for one, method in sets.get(name, {name: every.get(name)}).items():
            if one in found:
                raise InputError(f"{where}: the method '{one}' is given twice")
            assert method is not None
            found[one] = method
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested tables as dotted keys; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def overridden(overrides: Iterable[str]) -> dict[str, Any]:
    """Return `--set key=value` options as settings; raises `InputError`."""
    return dict(map(parsed_override, overrides))


def _check_changed(study: Study, changed: Mapping[str, Any]) -> None:
    """Refuse a change for every method that some methods would not get; raises `InputError`."""
    sources = {f"methods.{name}": method.set for name, method in study.methods.items()}
    sources |= {f"tuned.{name}": values for name, values in study.tuned.items()}
    for axis, values in study.axes.items():
        sources |= {f"axes.{axis}, {label}": point for label, point in values.points.items()}
    if study.search is not None:
        sources["search.keys"] = {key: None for key in study.search.keys}
    sources["seeds (or --seeds)"] = {"seed": None}
    sources["[budget]"] = {
        key: value
        for key, value in (
            ("rounds", study.budget.rounds), ("time_budget_s", study.budget.virtual_s)
        )
        if value is not None
    }  # fmt: skip
    for key, value in changed.items():
        wins = [where for where, own in sources.items() if key in own and own[key] != value]
        if wins:
            more = f" and {len(wins) - 3} more" if len(wins) > 3 else ""
            raise InputError(
                f"--set {key} has no effect here: the study has a value of its own, in "
                f"{'; '.join(wins[:3])}{more}; change it there"
            )


def _methods(own: Any, included: Any, source: str) -> dict[str, Any]:
    if not isinstance(own, dict) or not isinstance(included, list):
        raise InputError(
            f"{source}: 'methods' are tables, [methods.NAME]; 'include' is a list of the sets "
            f"{', '.join(shipped_sets())} or of their methods"
        )
    found: dict[str, Any] = {
        name: method.model_dump()
        for name, method in chosen_methods(included, f"{source}: include").items()
    }
    for name, values in own.items():
        if name in found:
            raise InputError(
                f"{source}: the method '{name}' is given twice: under [methods.{name}] and by "
                "'include'"
            )
        if not isinstance(values, dict):
            raise InputError(f"{source}: methods.{name}: write a table [methods.{name}]")
        found[name] = {**values, "set": _settings(values, f"{source}: methods.{name}.set")}
    return found


def _settings(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the settings of a study or a method, with dotted keys."""
    given = values.get("set", {})
    if not isinstance(given, Mapping):
        raise InputError(f"{where} = {given!r}: write set.KEY = value for a key of the scenario")
    return flat(given)


def _locate(values: dict[str, Any], folder: Path) -> None:
    """Make paths absolute of files that lie beside the study: of all, a method, or a point."""
    points = [point for axis in values["axes"].values() for point in axis["points"].values()]
    for settings in (values["set"], *(one["set"] for one in values["methods"].values()), *points):
        resolve_paths(settings, folder)


def _points(name: str, axis: Any) -> dict[str, Any]:
    """Return an axis's points: of a list, the axis's name is the key; of a table, each its own."""
    if isinstance(axis, list):
        return {_label(value): {name: value} for value in axis}
    if isinstance(axis, dict) and all(isinstance(point, dict) for point in axis.values()):
        return {label: flat(point) for label, point in axis.items()}
    raise InputError(
        f"axes.{name} = {axis!r}: give a list of values for this key of the scenario, or a table "
        "of named points, each with its settings"
    )


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(path: Path, what: str, builtin: Mapping[str, str]) -> str:
    try:
        return read_text(path)
    except (OSError, InputError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        kind = "studies" if what == "study" else "scenarios"
        raise InputError(
            f"cannot read {what} '{path}': {reason}; give a TOML file or one of the built-in "
            f"{kind}: {', '.join(builtin)}"
        ) from None


def _line(text: str, error: str) -> str:
    match = re.search(r"at line (\d+)", error)
    lines = text.splitlines()
    return lines[int(match[1]) - 1] if match and int(match[1]) <= len(lines) else ""
