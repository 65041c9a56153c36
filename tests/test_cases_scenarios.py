"""The table of commands in tests/cases/scenarios: what is refused, and with which words."""

from __future__ import annotations

import contextlib
import io
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from airtune.cli import main

ROOT = Path(__file__).resolve().parents[1]
CASES = tomllib.loads((ROOT / "tests/cases/scenarios/cases.toml").read_text("utf-8"))["case"]
WORDS = {"CELL": str(ROOT / "examples" / "cell.json"), "rounds=DIGITS": "rounds=" + "9" * 5000}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set()
    if "file" in case:
        name, *parts = case["file"]
        (tmp_path / name).write_text("".join(text * count for text, count in parts))
        before = {name}
    command = [WORDS.get(word, word) for word in case["command"]]
    monkeypatch.setattr(sys, "argv", ["airtune", *command])
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(tmp_path),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    assert case["said"] in err.getvalue()
    assert status == case.get("status", 2)
    if status:
        assert out.getvalue() == ""
        (line,) = err.getvalue().splitlines()
        assert line.startswith("airtune: ")
        assert len(line) < 500
        assert {path.name for path in tmp_path.iterdir()} == before


def test_the_cases_have_names_of_their_own() -> None:
    names = [case["name"] for case in CASES]
    assert len(set(names)) == len(names) > 30
