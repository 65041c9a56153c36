"""Standard output and error that never end a command, and the console for tables.

What a console cannot encode is written in ASCII's words; what is not read any more, or what a
full disk does not take, is dropped, and the command goes on to its end.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, cast

if TYPE_CHECKING:
    from rich.console import Console

ERRORS = "airtune"
"""Name of the handler of what cannot be encoded."""
_SPELLED = {
    "–": "-", "—": "-", "−": "-", "‐": "-", "‑": "-", "…": "...", "·": "*", "×": "x", "→": "->",
    "≤": "<=", "≥": ">=", "≈": "~", "²": "2", "⁹": "9", "“": '"', "”": '"', "‘": "'", "’": "'",
    "\N{NO-BREAK SPACE}": " ", "κ": "kappa", "ρ": "rho", "η": "eta", "Σ": "sum", "§": "section ",
    "─": "-", "━": "-", "│": "|", "•": "*", "°": " degrees ",
}  # fmt: skip


class Steady(io.RawIOBase):
    """A stream of bytes whose first failure is kept and whose later output is dropped."""

    def __init__(self, target: BinaryIO) -> None:
        self._target = target
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Yes, whatever happens."""
        return True

    def write(self, data: object) -> int:
        """Write and flush, or drop; return how many bytes are done with."""
        block = bytes(data)  # type: ignore[call-overload]
        if self.failure is None:
            try:
                self._target.write(block)
                self._target.flush()
            except OSError as error:
                self.failure = error
                _drain(self._target)
        return len(block)

    def fileno(self) -> int:
        """Of the stream underneath."""
        return self._target.fileno()

    def isatty(self) -> bool:
        """Whether the stream underneath is a terminal."""
        return self._target.isatty()


def _drain(target: BinaryIO) -> None:
    """Lead what the stream still holds to nowhere, or the interpreter's end complains of it."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target.fileno())
        os.close(nowhere)
        target.flush()


@contextmanager
def steady_streams() -> Iterator[list[Steady]]:
    """Put steady streams in the place of stdout and stderr; yields those of stdout.

    A stream that is not a file, such as a test's, stays as it is.
    """
    codecs.register_error(ERRORS, _spelled)
    before = sys.stdout, sys.stderr
    made = [_steady(stream) for stream in before]
    try:
        yield [raw for _, raw in made[:1] if raw is not None]
    finally:
        for stream, raw in made:
            if raw is not None:
                stream.flush()
                stream.detach()
        sys.stdout, sys.stderr = before


def _steady(stream: object) -> tuple[io.TextIOBase, Steady | None]:
    name = "stdout" if stream is sys.stdout else "stderr"
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None  # type: ignore[return-value]
    with suppress(OSError):
        stream.flush()
    raw = Steady(stream.buffer)
    text = io.TextIOWrapper(
        cast(BinaryIO, raw),
        encoding=stream.encoding,
        errors=ERRORS,
        write_through=True,
    )
    setattr(sys, name, text)
    return text, raw


def lost_output(stdout: list[Steady]) -> str | None:
    """Say why output was lost; None where none was, or its reader (head, less) went away."""
    for raw in stdout:
        # Windows says EINVAL where a pipe's reader went away.
        if raw.failure is not None and raw.failure.errno not in (errno.EPIPE, errno.EINVAL):
            return raw.failure.strerror or type(raw.failure).__name__
    return None


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Spell in ASCII what a console's encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if character in _SPELLED:
        return _SPELLED[character]
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def console() -> Console:
    """Return the console for tables: as wide as the window, or COLUMNS, or else 80."""
    from rich.console import Console

    return Console()
