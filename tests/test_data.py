"""Tasks: what is drawn from each source, and what malformed data gives."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer

from airtune.data import (
    Example,
    encode,
    load_task,
)
from airtune.data import sources as data_sources
from airtune.data.examples import frame, solution_steps, without_calculator
from airtune.data.generated import gsm_symbolic, sums
from airtune.data.yahoo import TOPICS
from airtune.errors import InputError
from airtune.models import assets
from airtune.scenario import TaskSection

TOKENIZER = ByT5Tokenizer()


def section(**values: Any) -> TaskSection:
    return TaskSection(**({"train_examples": 4, "eval_examples": 2} | values))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    return path


def gsm8k_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"How much is {i}+{i}?", "answer": f"It is <<{i}+{i}={2 * i}>>.\n#### {2 * i}"}
        for i in range(start, start + count)
    ]


# --- tasks ----------------------------------------------------------------------------------


def test_sums_are_true_distinct_and_labelled_by_digits() -> None:
    task = load_task(section(name="sums", train_examples=400, eval_examples=100), seed=5)
    prompts = [example.prompt for example in task.train + task.test]
    assert len(set(prompts)) == 500
    for example in task.train + task.test:
        first, second = map(int, example.prompt.removesuffix(" =").split(" + "))
        assert int(example.answer) == first + second
        assert example.label == max(len(str(first)), len(str(second)))
    assert {example.label for example in task.train} == {1, 2, 3, 4}


def test_the_same_seed_gives_the_same_task_and_another_seed_another() -> None:
    tasks = [load_task(section(name="sums"), seed=seed) for seed in (1, 1, 2)]
    assert tasks[0] == tasks[1]
    assert tasks[0].test != tasks[2].test


def test_the_test_set_does_not_depend_on_how_much_is_trained_on() -> None:
    small = load_task(section(name="sums", train_examples=4), seed=1)
    large = load_task(section(name="sums", train_examples=40), seed=1)
    assert small.test == large.test
    assert small.train == large.train[:4]


def test_a_file_is_split_without_overlap(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "data.jsonl", gsm8k_rows(30) * 2)  # every problem twice
    wanted = section(name="gsm8k", source=str(path), train_examples=20, eval_examples=10)
    task = load_task(wanted, seed=0)
    train, test = ({e.prompt for e in part} for part in (task.train, task.test))
    assert (len(train), len(test)) == (20, 10)
    assert not train & test
    assert task.train != load_task(wanted, seed=1).train


def test_a_folder_has_its_own_test_part(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", gsm8k_rows(10))
    # Two of the test problems are training problems too: they are not trained on.
    write_lines(tmp_path / "test.jsonl", gsm8k_rows(4, start=8))
    wanted = section(name="gsm8k", source=str(tmp_path), train_examples=8, eval_examples=4)
    task = load_task(wanted, seed=0)
    assert {e.prompt for e in task.test} == {frame(f"How much is {i}+{i}?") for i in range(8, 12)}
    assert {e.prompt for e in task.train} == {frame(f"How much is {i}+{i}?") for i in range(8)}


def test_calculator_annotations_go_and_steps_are_counted() -> None:
    assert without_calculator("48/2 = <<48/2=24>>24 clips") == "48/2 = 24 clips"
    assert solution_steps("one\n\n two\n#### 3") == 2
    assert solution_steps("#### 3") == 1
    assert solution_steps("line\n" * 30) == 8


def test_real_gsm8k(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "gsm8k"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    wanted = section(name="gsm8k", source=str(folder), train_examples=7000, eval_examples=1000)
    task = load_task(wanted, seed=0)
    assert len(task.train) == 7000
    assert len(task.test) == 1000
    assert all("<<" not in e.answer and "\n#### " in e.answer for e in task.train)
    assert {e.label for e in task.train} == set(range(2, 9))  # none has a single step


def test_long_examples_are_replaced_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i:02}", "answer": "a" * (50 if i < 5 else 1)} for i in range(15)]
    path = write_lines(tmp_path / "data.jsonl", rows)
    wanted = section(
        name="prompt-answer", source=str(path), train_examples=8, eval_examples=2, max_tokens=40
    )
    task = load_task(wanted, seed=0, tokenizer=TOKENIZER)
    assert all(len(e.answer) == 1 for e in task.train + task.test)
    assert 1 <= task.left_out <= 5
    assert len(encode(task.train, TOKENIZER, 40)) == 8
    too_many = wanted.model_copy(update={"train_examples": 9})
    with pytest.raises(InputError) as refusal:
        load_task(too_many, seed=0, tokenizer=TOKENIZER)
    assert "task.train_examples = 9: only 8 of " in str(refusal.value)
    assert "longer than task.max_tokens = 40" in str(refusal.value)


def test_prompt_answer_reads_chosen_columns_and_labels(tmp_path: Path) -> None:
    rows = [["frage", "antwort", "label"], *[[f"f{i}", i, "ab"[i % 2]] for i in range(6)]]
    path = write_csv(tmp_path / "data.csv", rows)
    wanted = section(
        name="prompt-answer", source=str(path), prompt_column="frage", answer_column="antwort"
    )
    task = load_task(wanted, seed=0)
    assert task.choices is None
    for example in task.train:
        number = int(example.answer)
        assert example == Example(frame(f"f{number}"), str(number), number % 2)


YAHOO = [
    [str(i % 10 + 1), f"title {i}", "" if i % 3 else f"more\\n{i}", f'said "{i}"']
    for i in range(20)
]


@pytest.mark.parametrize("form", ["original", "folder", "two columns", "header", "names", "hub"])
def test_yahoo_answers_in_each_form(tmp_path: Path, form: str) -> None:
    texts = [" ".join(" ".join(row[1:]).replace("\\n", " ").split()) for row in YAHOO]
    match form:
        case "original":
            source = write_csv(tmp_path / "data.csv", YAHOO)
        case "folder":
            source = write_csv(tmp_path / "train.csv", YAHOO).parent
            write_csv(tmp_path / "test.csv", YAHOO)
        case "two columns":
            pairs = [[text, row[0]] for text, row in zip(texts, YAHOO, strict=True)]
            source = write_csv(tmp_path / "data.csv", pairs)
        case "header":
            pairs = [[text, row[0]] for text, row in zip(texts, YAHOO, strict=True)]
            source = write_csv(tmp_path / "data.csv", [["text", "label"], *pairs])
        case "names":
            names = [TOPICS[int(row[0]) - 1].lower().replace(" & ", "_") for row in YAHOO]
            source = write_csv(
                tmp_path / "d.csv", [list(p) for p in zip(texts, names, strict=True)]
            )
        case "hub":
            header = ["id", "topic", "question_title", "question_content", "best_answer"]
            table = [[i, int(row[0]) - 1, *row[1:]] for i, row in enumerate(YAHOO)]
            source = write_csv(tmp_path / "data.csv", [header, *table])
    wanted = section(name="yahoo-answers", source=str(source), train_examples=10, eval_examples=10)
    task = load_task(wanted, seed=0)
    assert task.choices == TOPICS
    drawn = {e.prompt: (e.answer, e.label) for e in task.train + task.test}
    expected = {
        frame(text, cue="Topic"): (TOPICS[int(row[0]) - 1], int(row[0]) - 1)
        for text, row in zip(texts, YAHOO, strict=True)
    }
    assert drawn == expected


def test_forum_texts_are_cut_at_a_word(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "d.csv", [[f"{i} " + "word " * 100, "3"] for i in range(6)])
    task = load_task(section(name="yahoo-answers", source=str(source), max_tokens=20), seed=0)
    for example in task.train:
        text = example.prompt.removeprefix("Question: ").removesuffix("\nTopic:")
        assert 50 <= len(text) <= 60
        assert text.endswith("word")


# --- malformed and missing data ---------------------------------------------------------------

GOOD = {"question": "q?", "answer": "#### 1"}


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gsm8k", "d.jsonl", b'{"question": "q", "answer": "#### 1"}\n{"question": \n',
         "line 2: not a JSON object: "),
        ("gsm8k", "d.jsonl", b"\n\n[1, 2]\n",
         "line 3: expected one JSON object a line, found list"),
        ("gsm8k", "d.jsonl", b'{"question": "\xff"}\n', "line 1: not UTF-8 text"),
        ("gsm8k", "d.jsonl", b'{"frage": "q", "answer": "#### 1"}',
         "line 1: no column 'question'; columns there: frage, answer"),
        ("gsm8k", "d.jsonl", b'{"question": ["q"], "answer": "#### 1"}',
         "line 1: 'question' must be text, found [\"q\"]"),
        ("gsm8k", "d.jsonl", b'{"question": "q", "answer": "one"}',
         "line 1: 'answer' must end with '#### <number>'"),
        ("gsm8k", "d.jsonl", b'{"question": " ", "answer": "#### 1"}',
         "line 1: 'question' is empty"),
        ("gsm8k", "d.jsonl", b"", "the file holds no examples"),
        ("gsm8k", "d.txt", b"x", "cannot read '.txt'; give a .jsonl, .ndjson, .json, .csv, .tsv, "),
        ("prompt-answer", "d.csv", b"prompt,answer\na,b\n\nc\n",
         "line 4: 1 fields, but the header has 2: prompt, answer"),
        ("prompt-answer", "d.csv", b"text,answer\na,b\n",
         "line 2: no column 'prompt'; columns there: text, answer"),
        ("prompt-answer", "d.csv", b"prompt,answer\na,\n", "line 2: 'answer' is empty"),
        ("prompt-answer", "d.csv", b'prompt,answer\n"two\nlines",b\n"a"x,b\n',
         "line 4: not a CSV record: "),
        ("prompt-answer", "d.csv", b"prompt,answer\na,\xff\n", "not UTF-8 text"),
        ("prompt-answer", "d.csv", b"prompt,answer\n", "the file holds no examples"),
        ("yahoo-answers", "d.csv", b'"3","t","q","a"\n"11","t","q","a"\n',
         "line 2: '11' is not a class from 1 to 10 or one of: Society & Culture, "),
        ("yahoo-answers", "d.csv", b"a,b,c\n", "line 1: 3 fields; expected class (1 to 10), title"),
        ("yahoo-answers", "d.csv", b'"3","","",""\n', "line 1: the text is empty"),
        ("yahoo-answers", "d.jsonl", b'{"topic": "x", "question_title": "t"}\n',
         "line 1: 'topic' must be a number from 0 to 9, found 'x'"),
    ],
)  # fmt: skip
def test_malformed_data_names_file_and_line(
    tmp_path: Path, name: str, file: str, content: bytes, message: str
) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        load_task(section(name=name, source=str(path)), seed=0)
    text = str(refusal.value)
    assert text.startswith(str(path)) or text.startswith(f"cannot read {path}")
    assert message in text
    assert "\n" not in text


def test_missing_files_and_sources_are_named(tmp_path: Path) -> None:
    def refusal(**values: Any) -> str:
        with pytest.raises(InputError) as error:
            load_task(section(**values), seed=0)
        return str(error.value)

    missing = tmp_path / "none.jsonl"
    assert f"task.source = '{missing}': no such file" in refusal(name="gsm8k", source=str(missing))
    (tmp_path / "other.txt").write_text("x")
    message = refusal(name="gsm8k", source=str(tmp_path))
    assert "no train.jsonl or train.csv there, but other.txt" in message
    assert "task.source is missing" in refusal(name="prompt-answer")


def test_a_hub_dataset_is_drawn_from_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        rows = gsm8k_rows(50)
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(rows[:40]), test=datasets.Dataset.from_list(rows[40:])
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(data_sources, "PROBE_TIMEOUT_S", 0.01)
    task = load_task(section(name="gsm8k", train_examples=20, eval_examples=5), seed=0)
    assert asked == [("openai/gsm8k", "main")]
    assert len({e.prompt for e in task.train} | {e.prompt for e in task.test}) == 25


def test_a_dataset_that_cannot_be_had_is_refused_quickly(tmp_path: Path) -> None:
    code = (
        "from airtune.data import load_task; from airtune.scenario import TaskSection\n"
        "from airtune.errors import InputError\n"
        "try: load_task(TaskSection(name='gsm8k'), seed=0)\n"
        "except InputError as error: print(error)"
    )
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "NO_PROXY": "*",
    }  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 1
    assert "cannot have the dataset 'openai/gsm8k' offline" in lines[0]
    assert "set task.source to a local" in lines[0]
    assert run.returncode == 0


# --- reasoning-gym ----------------------------------------------------------------------------


@pytest.fixture
def reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> Path:
    try:
        return assets.wheel_folder("reasoning-gym")
    except InputError as refusal:
        pytest.skip(str(refusal))


def test_gsm_symbolic_has_worked_answers_and_leaves_no_modules(reasoning_gym: Path) -> None:
    problems = list(islice(gsm_symbolic(3), 300))
    assert not [name for name in sys.modules if name.startswith("reasoning_gym")]
    for problem in problems:
        assert problem.answer.count("\n#### ") == 1
        float(problem.answer.split("#### ")[1])
        assert "final answer" not in problem.prompt
    assert {problem.label for problem in problems} >= {2, 3, 4, 5}
    assert problems == list(islice(gsm_symbolic(3), 300))


def test_gsm_symbolic_never_tests_what_it_trains_on(reasoning_gym: Path) -> None:
    # 5,000 draws hold dozens of repeated questions, so this is not true by luck.
    stream = [problem.prompt for problem in islice(gsm_symbolic(0), 5000)]
    assert len(set(stream)) < 5000
    wanted = section(name="gsm-symbolic", train_examples=3000, eval_examples=1000)
    task = load_task(wanted, seed=0)
    train, test = ({e.prompt for e in part} for part in (task.train, task.test))
    assert (len(train), len(test)) == (3000, 1000)
    assert not train & test


def test_gsm_symbolic_is_the_same_in_every_process(reasoning_gym: Path) -> None:
    code = (
        "from airtune.data import load_task; from airtune.scenario import TaskSection\n"
        "task = load_task(TaskSection(train_examples=50, eval_examples=50), seed=7)\n"
        "import hashlib; print(hashlib.sha256(repr(task).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_an_imported_reasoning_gym_is_left_alone(
    reasoning_gym: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import ModuleType

    from airtune.data import generated

    theirs = ModuleType("reasoning_gym")
    monkeypatch.setitem(sys.modules, "reasoning_gym", theirs)
    generated._gsm_symbolic_generator.cache_clear()
    next(gsm_symbolic(0))
    assert sys.modules["reasoning_gym"] is theirs
    assert [n for n in sys.modules if n.startswith("reasoning_gym")] == ["reasoning_gym"]


def test_sums_labels_are_even() -> None:
    counts = Counter(example.label for example in islice(sums(np.random.default_rng(0)), 4000))
    assert all(abs(counts[digits] - 1000) < 120 for digits in (1, 2, 3, 4))
