"""Plugins: Python files, modules and installed packages that add parts to the registries.

A plugin is imported, and its decorators (`@at.planning_method`, `@at.merging_rule`,
`@at.channel_model`, `@at.task`) do the rest. It is imported once in a process; a file that has
changed since then is imported again, in place of what it added before.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.plugins import registry

ENTRY_POINTS = "airtune.plugins"
"""The group of entry points under which an installed package names its plugin modules."""


@dataclass(frozen=True)
class _Loaded:
    sha256: str
    parts: list[tuple[registry.Registry[Any], str]]


_LOADED: dict[str, _Loaded] = {}
_INSTALLED: dict[str, _Loaded] = {}
_LOOKED_UP: list[bool] = []


def load_plugins(names: Iterable[str]) -> None:
    """Import plugins: paths of Python files (`mine.py`, `methods/mine.py`) or module names.

    Raises:
        InputError: one cannot be read or imported, or adds a name that exists already; what it
            had added until then is taken back.
    """
    for name in names:
        _load_file(name) if is_path(name) else _load_module(name)


def load_entry_points() -> None:
    """Import the plugins of installed packages, once in a process.

    Raises:
        InputError: one cannot be imported; names its package.
    """
    if _LOOKED_UP:
        return
    for point in entry_points(group=ENTRY_POINTS):
        package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
        name = f"{point.name} ({point.value}{package})"
        if name not in _INSTALLED:
            _INSTALLED[name] = _imported(f"entry point {name}", point)
    _LOOKED_UP.append(True)


def provenance(names: Iterable[str]) -> list[dict[str, str]]:
    """Return name and SHA-256 of the given plugins as they were loaded, and of installed ones."""
    own = [(name, _LOADED[_key(name)]) for name in names if _key(name) in _LOADED]
    return [
        {"plugin": name, "sha256": plugin.sha256} for name, plugin in [*own, *_INSTALLED.items()]
    ]


def is_path(name: str) -> bool:
    """Whether a plugin's name is the path of a file, and not a module's name."""
    return name.endswith(".py") or "/" in name or "\\" in name


def _key(name: str) -> str:
    return str(Path(name).resolve()) if is_path(name) else name


def _load_file(name: str) -> None:
    path = Path(name).resolve()
    try:
        code = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"plugin '{name}' cannot be read ({error.strerror}); allowed: a Python file that "
            "every process of the run can read, or a module's name"
        ) from None
    digest = hashlib.sha256(code).hexdigest()
    before = _LOADED.get(str(path))
    if before is not None and before.sha256 == digest:
        return
    if before is not None:
        del _LOADED[str(path)]
        registry.remove(before.parts)
    # Named by path and content: two files of one name are two modules.
    label = hashlib.sha256(str(path).encode() + code).hexdigest()[:12]
    module_name = f"airtune_plugin_{label}"
    specification = importlib.util.spec_from_file_location(module_name, path)
    if specification is None or specification.loader is None:
        raise InputError(f"plugin '{name}': not a Python file; its name has to end in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module_name] = module
    since = registry.added()
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module_name]
        registry.remove(registry.added_since(since))
        raise InputError(f"plugin '{name}': {registry.explained(error)}") from error
    _LOADED[str(path)] = _Loaded(digest, registry.added_since(since))


def _load_module(name: str) -> None:
    if name in _LOADED:
        return
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(
            f"plugin '{name}': allowed are a file that ends in .py and a module's name"
        )
    _LOADED[name] = _imported(f"plugin '{name}'", name)


def _imported(what: str, target: str | EntryPoint) -> _Loaded:
    since = registry.added()
    try:
        if isinstance(target, str):
            module = importlib.import_module(target)
        else:
            module = importlib.import_module(target.module)
            target.load()
    except Exception as error:
        registry.remove(registry.added_since(since))
        raise InputError(f"{what}: {registry.explained(error)}") from error
    return _Loaded(_digest_of_module(module), registry.added_since(since))


def _digest_of_module(module: Any) -> str:
    """Return the SHA-256 of a module's file, or of all Python files of a package."""
    digest = hashlib.sha256()
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    if not folders and getattr(module, "__file__", None):
        files = [Path(module.__file__)]
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()
