"""How a CSV file is written: its separator, and how quotes stand inside quotes."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TextIO

SAMPLE = 50
"""Records that the separator is read from."""

MOST_FIELD_CHARACTERS = 2**31 - 1
"""Of a field; Python's own limit is 131,072."""


@contextmanager
def long_fields() -> Iterator[None]:
    """Let `csv` read fields of any length; its limit belongs to the process, so it is put back."""
    before = csv.field_size_limit(MOST_FIELD_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass(frozen=True)
class Dialect:
    """The separator, and whether a quote inside quotes is escaped by a backslash, not doubled."""

    separator: str
    backslash: bool

    def plain(self, lines: Iterator[str]) -> Iterator[str]:
        r"""Yield the lines with quotes doubled; other backslashes, as in ``\n``, stay."""
        if not self.backslash:
            yield from lines
            return
        for line in lines:
            yield re.sub(r"\\([\"\\])", lambda m: '""' if m[1] == '"' else "\\", line)


def dialect_of(file: TextIO, suffix: str) -> Dialect:
    r"""Read the dialect off a file.

    Separators are a comma, a tab (first in .tsv), a semicolon and a bar. The one that gives the
    first records the same number of fields, more than one, wins; of several the one that gives
    most. Where none does, it is the one that the first record holds most often.

    Quotes are escaped by a backslash where the file holds ``\"`` and is no valid CSV with
    doubled quotes.
    """
    # The characters of a file that is not UTF-8 are judged later, by line.
    head = list(itertools.islice(file, SAMPLE * 4))
    backslash = any('\\"' in line for line in head) or any('\\"' in line for line in file)
    order = ",\t;|" if suffix != ".tsv" else "\t,;|"
    plain = Dialect(_separator(head, order), backslash=False)
    if not backslash:
        return plain
    escaped = list(Dialect(",", backslash=True).plain(iter(head)))
    other = Dialect(_separator(escaped, order), backslash=True)
    file.seek(0)
    return plain if _is_valid(file, plain) else other


def _separator(lines: list[str], order: str) -> str:
    counts = {separator: _field_counts(lines, separator) for separator in order}
    even = [s for s in order if len(set(counts[s])) == 1 and counts[s][0] > 1]
    # max() takes the first of equals, so the order decides.
    return max(even or order, key=lambda s: counts[s][0] if counts[s] else 0)


def _field_counts(lines: list[str], separator: str) -> list[int]:
    """Return the number of fields of each of the first records; none where they are no CSV."""
    reader = csv.reader(iter(lines), delimiter=separator, skipinitialspace=True, strict=True)
    counts: list[int] = []
    # The last record may go on beyond the sample, which is an error like any other here.
    with long_fields(), suppress(csv.Error):
        counts.extend(len(fields) for fields in itertools.islice(reader, SAMPLE) if fields)
    return counts


def _is_valid(file: TextIO, dialect: Dialect) -> bool:
    reader = csv.reader(file, delimiter=dialect.separator, skipinitialspace=True, strict=True)
    try:
        with long_fields():
            return len({len(fields) for fields in reader if fields}) <= 1
    except csv.Error:
        return False
