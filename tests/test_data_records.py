"""JSON and CSV records: whatever is written comes back, with the line that it stands on."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.data.records import csv_records, json_rows, table_rows
from airtune.errors import InputError

# What a text file can hold; a zero byte and a lone return are no part of CSV.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=12)
CELL = TEXT.map(lambda text: text.lstrip(" "))


def written(content: bytes, suffix: str, folder: str) -> Path:
    path = Path(folder) / f"d{suffix}"
    path.write_bytes(content)
    return path


@given(
    st.integers(2, 5).flatmap(
        lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1, max_size=6)
    ),
    st.sampled_from([",", "\t", ";", "|"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_csv_comes_back(rows: list[list[str]], separator: str, mark: bool) -> None:
    header = [f"c{i}" for i in range(len(rows[0]))]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([header, *rows])
    content = text.getvalue().encode("utf-8-sig" if mark else "utf-8")
    with tempfile.TemporaryDirectory() as folder:
        found = list(table_rows(written(content, ".csv", folder)))
    assert [list(row.values()) for _, row in found] == rows
    line = 2
    for (place, _), row in zip(found, rows, strict=True):
        assert place.endswith(f"line {line}")
        line += 1 + sum(cell.count("\n") for cell in row)


@given(
    st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6),
    st.sampled_from([",", ";"]),
)
@settings(max_examples=100, deadline=None)
def test_csv_with_backslashes_comes_back(rows: list[list[str]], separator: str) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace("\\", "\\\\").replace('"', '\\"') + '"'

    # A quote in the middle of a word: no valid CSV with doubled quotes.
    lines = [["a", "b"], ['says "no" twice', "x"], *rows]
    content = "".join(separator.join(map(quoted, line)) + "\n" for line in lines).encode()
    with tempfile.TemporaryDirectory() as folder:
        found = [fields for _, fields in csv_records(written(content, ".csv", folder))]
    assert found == lines


@given(st.lists(st.dictionaries(TEXT, TEXT, max_size=3), max_size=5), st.booleans(), st.booleans())
@settings(max_examples=100, deadline=None)
def test_json_comes_back(rows: list[dict[str, str]], ascii_only: bool, mark: bool) -> None:
    encoding = "utf-8-sig" if mark else "utf-8"
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    array = json.dumps(rows, ensure_ascii=ascii_only, indent=1)
    with tempfile.TemporaryDirectory() as folder:
        from_lines = list(json_rows(written(lines.encode(encoding), ".jsonl", folder)))
        from_array = list(json_rows(written(array.encode(encoding), ".json", folder)))
    assert [row for _, row in from_lines] == [row for _, row in from_array] == rows
    assert [place.rpartition(" ")[2] for place, _ in from_lines] == [
        str(number) for number, _ in enumerate(rows, start=1)
    ]
    starts = [n for n, line in enumerate(array.split("\n"), start=1) if line.startswith(" {")]
    assert [int(place.rpartition(" ")[2]) for place, _ in from_array] == starts


@given(st.binary(max_size=40), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".csv.gz"]))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_in_one_line(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(content, suffix, folder)
        message = f"{path}"
        try:
            list(table_rows(path, {"a"}))
        except InputError as refusal:
            message = str(refusal)
    assert str(path) in message
    assert "\n" not in message


def test_the_limit_of_a_csv_field_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    rows = csv_records(written(b"a,b\nc,d\n", ".csv", str(tmp_path)))
    next(rows)
    assert csv.field_size_limit() == before
    assert [fields for _, fields in rows] == [["c", "d"]]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, suffix: str) -> None:
    def rows(path: Path) -> Any:
        return list(table_rows(path))

    with pytest.raises(InputError, match="cannot read"):
        rows(tmp_path / f"none{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(InputError, match="cannot read"):
        rows(tmp_path / f"folder{suffix}")
