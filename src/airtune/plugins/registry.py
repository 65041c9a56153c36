"""A registry: the parts of one kind by name, built-in or from a plugin, all alike."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from airtune.errors import InputError, RunError

Entry = TypeVar("Entry")

_PACKAGE = Path(__file__).resolve().parents[1]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDED: list[tuple[Registry[Any], str]] = []
"""What was added to any registry after its built-in parts, in order."""


class Registry(dict[str, Entry]):
    """The parts of one kind by name, in the order in which they are listed.

    Args:
        kind: what one of them is called, e.g. "planning method".
        key: the scenario's key that names one.
        entries: the built-in parts.
    """

    def __init__(self, kind: str, key: str, entries: Mapping[str, Entry]) -> None:
        super().__init__(entries)
        self.kind, self.key = kind, key

    def add(self, name: str, entry: Entry) -> None:
        """Add a part.

        Raises:
            InputError: the name is taken, or has characters that a folder or a list cannot hold.
        """
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                f"{self.kind} {name!r}: a name has letters, digits, '.', '_' and '-' only"
            )
        if name in self:
            raise InputError(f"{self.kind} '{name}' exists already: give yours another name")
        self[name] = entry
        _ADDED.append((self, name))

    def has(self, name: str) -> bool:
        """Whether there is a part; one that is not known is looked for in installed plugins."""
        if name not in self:
            from airtune.plugins.loading import load_entry_points

            load_entry_points()
        return name in self

    def find(self, name: str) -> Entry:
        """Return a part.

        Raises:
            InputError: there is none of this name; lists those that there are.
        """
        if not self.has(name):
            raise InputError(f"{self.key} = '{name}': allowed are {', '.join(self)}")
        return self[name]


def added() -> int:
    """Return how many parts have been added so far."""
    return len(_ADDED)


def added_since(count: int) -> list[tuple[Registry[Any], str]]:
    """Return the parts that were added after the first `count`."""
    return _ADDED[count:]


def remove(parts: list[tuple[Registry[Any], str]]) -> None:
    """Take parts that were added out of their registries again."""
    for registry, name in parts:
        _ADDED.remove((registry, name))
        registry.pop(name, None)


def loaded(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return a part's function; one that is given as `module:name` is imported now."""
    if not isinstance(function, str):
        return function
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a part's function; an error in a plugin becomes one line.

    Args:
        what: the part, e.g. "planning method 'mine'".
        function: the part's.
        arguments: its arguments.

    Raises:
        InputError: a plugin's function raised; names the part, the file, the line and the error.
    """
    if is_built_in(function):
        return function(*arguments)
    try:
        return function(*arguments)
    except RunError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {explained(error)}") from error


def is_built_in(function: Callable[..., Any]) -> bool:
    """Whether a function is airtune's own."""
    return (getattr(function, "__module__", None) or "").partition(".")[0] == "airtune"


def explained(error: Exception) -> str:
    """Return an error of a plugin as one line, with the place where it was raised."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    place = _place(error)
    if isinstance(error, SyntaxError) and error.lineno:
        place, text = f"line {error.lineno}: ", error.msg
    return f"{place}{type(error).__name__}: {text}" if text else f"{place}{type(error).__name__}"


def _place(error: Exception) -> str:
    """Return the last line of the plugin's own file that an error passed, or nothing."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen") and _PACKAGE not in Path(frame.filename).parents
    ]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""
