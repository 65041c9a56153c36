"""Every table in tests/cases: files as people have them, and what each has to give."""

from __future__ import annotations

import gzip
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airtune.channel.trace import read_trace
from airtune.data import load_task
from airtune.encoding import read_text
from airtune.errors import InputError
from airtune.planning import problem_from_json
from airtune.scenario import TaskSection, load_scenario

TABLES = Path(__file__).parent / "cases"
Case = dict[str, Any]


def check_data(path: Path, case: Case) -> None:
    """`task`: settings; `examples`: [prompt, answer] of every row; `labels`: their texts."""
    examples = case.get("examples", [])
    settings = {"name": "prompt-answer", "max_tokens": 10**6, "train_examples": 1}
    if examples:
        settings["train_examples"] = len(examples) - 1
    section = TaskSection(**(settings | {"eval_examples": 1} | case.get("task", {})))
    task = load_task(section.model_copy(update={"source": str(path)}), seed=0)
    found = [(bare(turn.prompt), turn.answer) for e in task.test + task.train for turn in e.turns]
    expected = [(grown(prompt), grown(answer)) for prompt, answer in examples]
    if "turns" in case:
        expected = [(prompt, answer) for prompt, answer in case["turns"]] + expected
    assert sorted(found) == sorted(expected)
    if "labels" in case:
        assert sorted(task.labels) == sorted(case["labels"])
        for example in task.train + task.test:
            wanted = case.get("label_of", {}).get(bare(example.prompt))
            assert wanted is None or task.label_name(example.label) == wanted
    assert task.choices == (task.labels if section.name == "classification" else None)


def check_scenario(path: Path, case: Case) -> None:
    """`gives`: key path → value of the scenario read."""
    scenario = load_scenario(path)
    for key, value in case["gives"].items():
        found: Any = scenario
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value


def check_problem(path: Path, case: Case) -> None:
    """`names`: of the problem's clients."""
    assert list(problem_from_json(read_text(path)).names) == case["names"]


def check_trace(path: Path, case: Case) -> None:
    """`period_ms`: the trace's length."""
    assert read_trace(path).period_ms == case["period_ms"]


CHECKS: dict[str, Callable[[Path, Case], None]] = {
    "data": check_data,
    "scenario": check_scenario,
    "problem": check_problem,
    "trace": check_trace,
}


def cases() -> list[Any]:
    tables = {p.stem: tomllib.loads(p.read_text("utf-8")) for p in sorted(TABLES.glob("*.toml"))}
    return [
        pytest.param(table["check"], case, id=f"{name}: {case['name']}")
        for name, table in tables.items()
        for case in table["case"]
    ]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(("check", "case"), cases())
def test_case(check: str, case: Case, tmp_path: Path) -> None:
    path = written(tmp_path, case)
    if "refused" not in case:
        CHECKS[check](path, case)
        return
    with pytest.raises(InputError) as refusal:
        CHECKS[check](path, case)
    message = str(refusal.value)
    assert case["refused"] in message
    assert "\n" not in message
    assert len(message.replace(str(path), "")) < 500
    message.encode()  # any console can be given it


def written(folder: Path, case: Case) -> Path:
    """Write a case's files; returns the file, or the folder where there are several."""
    for file in case.get("files", [case]):
        path = folder / file["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if "hex" in file:
            content = bytes.fromhex(file["hex"])
        else:
            content = grown(file["text"]).encode(file.get("encoding", "utf-8"))
        path.write_bytes(gzip.compress(content) if file.get("gzip") else content)
    return folder if "files" in case else path


def grown(text: str) -> str:
    """Return the text with ``<<x*3>>`` written out as xxx."""
    return re.sub(r"<<(.+?)\*(\d+)>>", lambda m: m[1] * int(m[2]), text, flags=re.DOTALL)


def bare(prompt: str) -> str:
    """Return a prompt without its frame."""
    return re.sub(r"\n(Answer|Label|Topic):$", "", prompt.strip().removeprefix("Question: "))
