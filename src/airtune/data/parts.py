"""A part of a data set: JSON and CSV files, or a table of `datasets`.

Every row comes with the place it was read from, so that a refusal can name file and line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from airtune.data.records import COMPRESSED, CSV, JSON, Number, Row, format_of, table_rows
from airtune.errors import InputError

TABLES = (".parquet", ".arrow")
SUFFIXES = (*JSON, *CSV, *TABLES)


@dataclass(frozen=True)
class TextPart:
    """JSON or CSV files that make up one part of a data set."""

    paths: tuple[Path, ...]

    def rows(self, used: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
        """Yield (place, row) in the order of the files; see `table_rows`."""
        for path in self.paths:
            yield from table_rows(path, used)


@dataclass(frozen=True)
class TablePart:
    """A table of `datasets`: rows are read as they are asked for."""

    name: str
    table: Any

    def rows(self, rng: np.random.Generator) -> Iterator[tuple[str, Row]]:
        """Yield (place, row) in random order, reading only what is asked for."""
        for index in rng.permutation(len(self.table)):
            row = self.table[int(index)]
            features = self.table.features
            values = {name: _written(value, features[name]) for name, value in row.items()}
            yield f"{self.name}, row {index}", values

    def texts(self, column: str) -> list[str]:
        """Return the different values of a label column that are not null, as text."""
        if column not in self.table.column_names:
            raise _no_column(self.name, column, self.table.column_names, "task.label_column")
        feature = self.table.features[column]
        if hasattr(feature, "names"):
            return list(feature.names)
        written = (_written(value, feature) for value in self.table.unique(column))
        texts = (label_text({column: v}, column, self.name) for v in written if v is not None)
        return list(dict.fromkeys(texts))


Part = TextPart | TablePart


@dataclass(frozen=True)
class Parts:
    """The train part of a data set, and its test part where it has one."""

    train: Part
    test: Part | None


def allowed() -> str:
    """Name the file formats that can be read."""
    return ", ".join(SUFFIXES[:-1]) + f" or {SUFFIXES[-1]}"


def part_of(paths: tuple[Path, ...]) -> Part:
    """Open files of one format as one part; raises `InputError`."""
    suffix = format_of(paths[0])
    if suffix in (*JSON, *CSV):
        return TextPart(paths)
    if suffix in TABLES and paths[0].suffix.lower() not in COMPRESSED:
        return TablePart(str(paths[0]), read_tables(paths))
    compressed = ", ".join(COMPRESSED)
    raise InputError(
        f"{paths[0]}: cannot read '{paths[0].suffix}'; give a {allowed()} file; JSON and CSV may "
        f"be compressed ({compressed})"
    )


def read_tables(paths: tuple[Path, ...]) -> Any:
    """Return the `datasets.Dataset` that Parquet or Arrow files of one schema make up."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    tables = []
    for path in paths:
        try:
            if format_of(path) == ".arrow":
                tables.append(datasets.Dataset.from_file(str(path)).data.table)
            else:
                # Not through `datasets`' cache: it knows a file by its path and time of change.
                tables.append(parquet.ParquetFile(path).read())
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"cannot read {path}: {reason[:160]}") from None
        names = tables[-1].column_names
        doubled = next((name for name in names if names.count(name) > 1), None)
        if doubled is not None:
            raise InputError(f"{path}: the column '{doubled}' is there twice")
        if not tables[-1].schema.equals(tables[0].schema):
            raise InputError(f"{path}: its columns or their types are not those of {paths[0]}")
    return datasets.Dataset(pa.concat_tables(tables))


def text_of(row: Mapping[str, Any], column: str, place: str, *, key: str = "") -> str:
    """Return a column's value as text.

    Args:
        row: its values by column.
        column: which one.
        place: of the row, for messages.
        key: what names the column in a scenario, e.g. `task.label_column`; none where it is fixed.

    Raises:
        InputError: the column is missing, empty, or neither text nor a number.
    """
    if column not in row:
        raise _no_column(place, column, row, key)
    value = row[column]
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not finite:
        shown = json.dumps(value, default=str, ensure_ascii=False)[:40]
        raise InputError(f"{place}: '{column}' must be text, found {shown}")
    text = str(value).strip()
    if not text:
        raise InputError(f"{place}: '{column}' is empty")
    return text


def _no_column(place: str, column: str, columns: Iterable[object], key: str) -> InputError:
    there = ", ".join(map(str, columns)) or "none"
    hint = f" ({key} names the one to read)" if key else ""
    return InputError(f"{place}: no column '{column}'; columns there: {there}{hint}")


def label_text(row: Mapping[str, Any], column: str, place: str) -> str:
    """Return the label column's text: as `text_of`, and true and false as JSON spells them."""
    value = row.get(column)
    if isinstance(value, bool):
        text = json.dumps(value)
    else:
        text = text_of(row, column, place, key="task.label_column")
    if len(text.splitlines()) > 1:
        raise InputError(f"{place}: '{column}' goes over several lines; a label is one line")
    return text


def _written(value: Any, feature: Any) -> Any:
    """Return a table's value as a person would write it: class names, and 0.1 for a float32."""
    if hasattr(feature, "int2str"):
        # -1 is what test parts hold in place of a label that is kept secret.
        return None if value is None or value == -1 else feature.int2str(value)
    if isinstance(value, float) and math.isfinite(value):
        kind = {"float16": np.float16, "float32": np.float32}.get(feature.dtype, float)
        return Number(kind(value))
    return Number(value) if isinstance(value, Decimal) else value
