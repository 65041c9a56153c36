"""Text as files hold it: UTF-8, with or without a byte order mark; everything else is named."""

from __future__ import annotations

import codecs
import csv
import re
from pathlib import Path

from airtune.errors import InputError

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair that stands for one character: no text file can hold it."""

_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32 text"),
    (codecs.BOM_UTF32_BE, "UTF-32 text"),
    (codecs.BOM_UTF16_LE, "UTF-16 text"),
    (codecs.BOM_UTF16_BE, "UTF-16 text"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel sheet)"),
    (b"PAR1", "a Parquet file"),
)


def read_text(path: str | Path) -> str:
    """Return a file's text; a byte order mark is dropped.

    Raises:
        OSError: the file cannot be read.
        InputError: it is not UTF-8; the message says what it looks like, without the file's name.
    """
    return decoded(Path(path).read_bytes())


def decoded(raw: bytes) -> str:
    """Return the text of UTF-8 bytes; raises `InputError` as `read_text` does."""
    if (other := other_format(raw[:64])) is not None:
        raise InputError(other)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line}: {not_utf8(raw[error.start])}") from None


def other_format(start: bytes) -> str | None:
    """Return what a file is by its first bytes where that is no UTF-8 text, else None."""
    for mark, name in _MARKS:
        if start.startswith(mark):
            return f"not UTF-8 text but {name}{_REMEDY if name.endswith('text') else ''}"
    # UTF-16 without a mark: every other byte of Latin text is 0.
    for offset in (0, 1):
        zeros = start[offset::2]
        if len(start) >= 4 and not any(zeros) and all(start[1 - offset :: 2]):
            return f"not UTF-8 text but UTF-16 text{_REMEDY}"
    return None


def not_utf8(byte: int) -> str:
    """Return what to say of the first byte that is not UTF-8, with what it is in Windows-1252."""
    try:
        character = bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return f"not UTF-8 text (byte 0x{byte:02x}){_REMEDY}"
    return (
        f"not UTF-8 text (byte 0x{byte:02x}, which is '{character}' in Windows-1252, also "
        f"called cp1252){_REMEDY}"
    )


def surrogate_in(text: str) -> str | None:
    """Return a lone surrogate of a text as it is escaped in JSON, or None."""
    found = None if text.isascii() else LONE_SURROGATE.search(text)
    return None if found is None else f"\\u{ord(found[0]):04x}"


_REMEDY = "; save it as UTF-8"


def csv_lines(path: str | Path, key: str) -> list[tuple[int, list[str]]]:
    """Return the fields of a CSV file's lines that have any, with the lines' numbers.

    Args:
        path: of the file.
        key: of the scenario, which names the file in a refusal.

    Raises:
        InputError: it cannot be read, or is not CSV in UTF-8.
    """
    what = f"{key} '{path}' cannot be read"
    reader = None
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            return [(reader.line_num, fields) for fields in reader if any(map(str.strip, fields))]
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{what}: not UTF-8 text") from None
    except csv.Error as error:
        number = 1 if reader is None else reader.line_num
        raise InputError(f"{path}, line {number}: not CSV: {error}") from None
