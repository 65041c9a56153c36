"""The two kinds of errors: what the user can correct, and a run that failed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_LISTED = 4
"""Names that a message lists."""


class InputError(ValueError):
    """What the user wrote cannot be used; the command ends with exit status 2.

    The message is one line that quotes what was written, names the key or file, and says
    what is allowed.
    """


class RunError(RuntimeError):
    """A run that started could not go on; the command ends with exit status 1.

    The message is one line. What had been recorded before stays on disk.
    """


def first_of(names: Sequence[str]) -> str:
    """List the first names, for a message of one line: all of them, or four and "…"."""
    return ", ".join(names[:_LISTED]) + (", …" if len(names) > _LISTED else "")


def did_you_mean(written: str, known: Iterable[str]) -> str:
    """Return "did you mean 'NAME'? " for the known name closest to what was written, or nothing."""
    close = difflib.get_close_matches(written, list(known), n=1)
    return f"did you mean '{close[0]}'? " if close else ""
