"""JSON, JSON lines, CSV and TSV: rows as they are written, each with its line.

`datasets` reads Parquet, Arrow, its own folders and the hub (`airtune.data.sources`). Text files
are split by Python's own `json` and `csv`, because what trains a model is what the file says:
the readers of `datasets` give 1e22 back as 1e+22, 0.10 as 0.1, 01 as 1, "NA" as nothing, a date as
a time, and know no line numbers (docs/log.md).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

from airtune.data.dialect import Dialect, dialect_of, long_fields
from airtune.encoding import LONE_SURROGATE, not_utf8, other_format, surrogate_in
from airtune.errors import InputError

JSON = (".jsonl", ".ndjson", ".json")
CSV = (".csv", ".tsv")
COMPRESSED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

Row = dict[str, Any]


class Number(str):
    """A number as the file spells it."""


def format_of(path: Path) -> str:
    """Return a file's format by its suffix, ``.csv`` for ``DATA.CSV.gz``."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def table_rows(path: Path, used: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yield (place, row by column name) of a JSON file, or of a CSV file with a header.

    Args:
        path: the file.
        used: columns that are read; in a CSV file, where such a column holds nothing but numbers,
            a "nan" among them is a number that is missing and no text.

    Raises:
        InputError: at the first record that cannot be used; it names file and line.
    """
    if format_of(path) in JSON:
        yield from json_rows(path)
        return
    records = csv_records(path)
    place, header = next(records, ("", []))
    header = [name.strip() for name in header]
    doubled = next((name for name in header if name and header.count(name) > 1), None)
    if doubled is not None:
        raise InputError(f"{place}: the column '{doubled}' is there twice; rename or remove one")
    missing = _MissingNumbers(header, used)
    for place, fields in records:
        if len(fields) != len(header):
            raise InputError(
                f"{place}: {len(fields)} fields, but the header has {len(header)}: "
                f"{', '.join(header)}"
            )
        missing.see(place, fields)
        yield place, dict(zip(header, fields, strict=True))
    missing.refuse()


def json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, object) of an array of objects, or of one object a line."""
    with _text(path, newline="\n") as file:
        start = file.read(4096)
        file.seek(0)
        if _is_array(start, format_of(path)):
            yield from _array(path, "".join(_checked_lines(path, file)))
            return
        for number, line in enumerate(_checked_lines(path, file), start=1):
            if line.strip():
                yield _json_object(f"{path}, line {number}", line)


def csv_records(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, fields) for each record that is not empty; the header is not told apart."""
    with _text(path, newline="") as file:
        dialect = dialect_of(file, format_of(path))
    with _text(path, newline="") as file:
        lines = dialect.plain(_checked_lines(path, file))
        yield from _split(path, lines, dialect)


def _split(path: Path, lines: Iterator[str], dialect: Dialect) -> Iterator[tuple[str, list[str]]]:
    reader = csv.reader(lines, delimiter=dialect.separator, skipinitialspace=True, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            with long_fields():
                fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{path}, line {first}: not a CSV record: {error}") from None
        if fields:
            yield f"{path}, line {first}", fields


def _is_array(start: str, suffix: str) -> bool:
    """A file that begins with [ is an array; in .jsonl it may also be a wrong line."""
    return re.match(r"\s*\[" if suffix == ".json" else r"\s*\[\s*(\{|\Z)", start) is not None


def _array(path: Path, text: str) -> Iterator[tuple[str, Row]]:
    position, line, first = text.index("[") + 1, 1, True
    counted = 0

    def place_of(at: int) -> str:
        nonlocal line, counted
        line += text.count("\n", counted, at)
        counted = at
        return f"{path}, line {line}"

    while True:
        position = _after_blanks(text, position)
        place, mark = place_of(position), text[position : position + 1]
        if not mark:
            raise InputError(f"{place}: the file ends before the array's closing ']'")
        if mark == "]":
            if text[position + 1 :].strip():
                raise InputError(f"{place}: there is text after the array's closing ']'")
            return
        if not first:
            if mark != ",":
                raise InputError(f"{place}: not JSON: ',' or ']' expected, found '{mark}'")
            position = _after_blanks(text, position + 1)
            place = place_of(position)
        with _json_errors(place):
            value, end = _DECODER.raw_decode(text, position)
        yield _checked_object(place, value, text[position:end], "an array of objects")
        position, first = end, False


def _after_blanks(text: str, position: int) -> int:
    return cast(re.Match[str], _BLANKS.match(text, position)).end()


_BLANKS = re.compile(r"\s*")


def _json_object(place: str, line: str) -> tuple[str, Row]:
    with _json_errors(place):
        value = _DECODER.decode(line)
    return _checked_object(place, value, line, "one JSON object a line")


def _checked_object(place: str, value: Any, source: str, expected: str) -> tuple[str, Row]:
    if not isinstance(value, dict):
        kind = "number" if isinstance(value, Number) else type(value).__name__
        raise InputError(f"{place}: expected {expected}, found {kind}")
    if re.search(r"\\u[dD][89a-fA-F]", source):
        written = json.dumps(value, ensure_ascii=False)
        if (half := surrogate_in(written)) is not None:
            raise InputError(
                f"{place}: {half} is half of a surrogate pair, which is no character; remove it"
            )
    return place, value


@contextmanager
def _json_errors(place: str) -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise InputError(f"{place}: not a JSON object: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{place}: not a JSON object: {error}") from None


def _pairs(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{doubled}' is there twice")
    return row


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number in JSON; write null, or leave the key out")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_float=Number, parse_int=Number, parse_constant=_no_number
)


class _MissingNumbers:
    """Finds "nan" in the columns that otherwise hold numbers."""

    WORDS = re.compile(r"nan|#?n/?a|null|none|[+-]?inf(inity)?", re.IGNORECASE)

    def __init__(self, header: list[str], used: Collection[str]) -> None:
        self._names = {i: name for i, name in enumerate(header) if name in used}
        self._first: dict[int, tuple[str, str]] = {}
        self._numbers: set[int] = set()

    def see(self, place: str, fields: list[str]) -> None:
        for index in list(self._names):
            text = fields[index].strip()
            if not text:
                continue
            if self.WORDS.fullmatch(text):
                self._first.setdefault(index, (place, text))
            elif re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text):
                self._numbers.add(index)
            else:
                del self._names[index]

    def refuse(self) -> None:
        for index, name in self._names.items():
            if index in self._numbers and index in self._first:
                place, text = self._first[index]
                raise InputError(
                    f"{place}: '{name}' is {text}, and a number in every other line: a missing "
                    "number cannot be trained on; remove the line"
                )


@contextmanager
def _text(path: Path, newline: str) -> Iterator[TextIO]:
    """Open a file as text; bytes that are not UTF-8 stay, as surrogates, for `_checked_lines`."""
    opener = COMPRESSED.get(path.suffix.lower())
    try:
        with cast(BinaryIO, opener(path) if opener else path.open("rb")) as raw:
            if (other := other_format(raw.read(64))) is not None:
                raise InputError(f"{path}: {other}")
            raw.seek(0)
            yield io.TextIOWrapper(
                raw, encoding="utf-8-sig", errors="surrogateescape", newline=newline
            )
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise InputError(f"cannot read {path}: damaged or cut short ({error})") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def _checked_lines(path: Path, file: TextIO) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.isascii() and (bad := LONE_SURROGATE.search(line)):
            raise InputError(f"{path}, line {number}: {not_utf8(ord(bad[0]) - 0xDC00)}")
        yield line
