"""Parquet, Arrow, save_to_disk and the hub's layout: read by `datasets`, refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from airtune.data import Task, load_task
from airtune.errors import InputError
from airtune.scenario import TaskSection


def load(source: Path, **values: Any) -> Task:
    defaults = {"name": "prompt-answer", "train_examples": 2, "eval_examples": 1}
    return load_task(TaskSection(**(defaults | {"source": str(source)} | values)), seed=0)


def refusal(source: Path, **values: Any) -> str:
    with pytest.raises(InputError) as error:
        load(source, **values)
    assert "\n" not in str(error.value)
    return str(error.value)


def answers(task: Task) -> dict[str, str]:
    found = {e.prompt: e.answer for e in task.train + task.test}
    return {p.removeprefix("Question: ").partition("\n")[0]: a for p, a in found.items()}


def columns(count: int, **more: Any) -> dict[str, Any]:
    return {"prompt": [f"q{i}" for i in range(count)], "answer": [str(i) for i in range(count)]} | {
        name: values[:count] for name, values in more.items()
    }


def write_parquet(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(values), path)
    return path


ALL = {"q0": "0", "q1": "1", "q2": "2"}


def test_parquet_arrow_and_saved_folders_hold_the_same(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict(columns(3))
    table.to_parquet(tmp_path / "d.PARQUET")
    table.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    datasets.DatasetDict(train=table.select([0, 1]), test=table.select([2])).save_to_disk(
        tmp_path / "split"
    )
    for source in (tmp_path / "d.PARQUET", tmp_path / "saved", arrow, tmp_path / "split"):
        assert answers(load(source)) == ALL
    assert load(tmp_path / "split").test[0].answer == "2"


def test_nothing_is_left_beside_the_data_or_in_a_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = tmp_path / "caches"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches)
    monkeypatch.setenv("AIRTUNE_CACHE", str(caches))
    folder = tmp_path / "data"
    datasets.Dataset.from_dict(columns(3)).save_to_disk(folder / "saved")
    write_parquet(folder / "d.parquet", columns(3))
    before = sorted(folder.rglob("*"))
    load(folder / "saved")
    load(folder / "d.parquet")
    assert sorted(folder.rglob("*")) == before
    assert not caches.exists()


def test_a_file_that_was_rewritten_is_read_anew(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", columns(3))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    load(path)
    write_parquet(path, {"prompt": ["a", "b", "c"], "answer": ["x", "y", "z"]})
    os.utime(path, ns=times)
    assert answers(load(path)) == {"a": "x", "b": "y", "c": "z"}


def test_the_hubs_layout_with_a_configuration(tmp_path: Path) -> None:
    rows = {"question": [f"q{i}" for i in range(3)], "answer": [f"#### {i}" for i in range(3)]}
    other = rows | {"answer": ["#### 9"] * 3}
    for part in ("train", "test"):
        write_parquet(tmp_path / "main" / f"{part}-00000-of-00001.parquet", rows)
    write_parquet(tmp_path / "socratic" / "train-00000-of-00001.parquet", other)
    wanted = {"train_examples": 1, "eval_examples": 1}
    assert "9" not in load(tmp_path, name="gsm8k", **wanted).train[0].answer
    message = refusal(tmp_path, prompt_column="question", **wanted)
    assert "several folders have a train file" in message
    assert f"'{tmp_path / 'main'}'" in message


def test_shards_are_one_part_and_must_agree(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002-0123456789abcdef.parquet", columns(2))
    last = tmp_path / "train-00001-of-00002-0123456789abcdef.parquet"
    write_parquet(last, {"prompt": ["q2"], "answer": ["2"]})
    assert answers(load(tmp_path)) == ALL
    write_parquet(last, {"prompt": ["q2"], "answer": [2]})
    assert "its columns or their types are not those of" in refusal(tmp_path)


def test_numbers_are_written_as_a_person_would(tmp_path: Path) -> None:
    values = {"prompt": ["a", "b", "c"], "answer": pa.array([0.1, 4.5, 3.8], pa.float32())}
    path = write_parquet(tmp_path / "d.parquet", values)
    assert answers(load(path)) == {"a": "0.1", "b": "4.5", "c": "3.8"}
    values["answer"] = pa.array([0.1, float("nan"), 2.0])
    path = write_parquet(tmp_path / "d.parquet", values)
    assert refusal(path).endswith("d.parquet, row 1: 'answer' must be text, found NaN")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "answer", "answer"])
    parquet.write_table(table, tmp_path / "d.parquet")
    assert "d.parquet: the column 'answer' is there twice" in refusal(tmp_path / "d.parquet")


def test_class_labels_go_by_their_names(tmp_path: Path) -> None:
    features = datasets.Features(
        prompt=datasets.Value("string"), label=datasets.ClassLabel(names=["ham", "spam", "eggs"])
    )
    rows = {"prompt": [f"q{i}" for i in range(4)], "label": [1, 0, 1, 0]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "d.parquet")
    task = load(tmp_path / "d.parquet", name="classification", train_examples=3)
    assert answers(task) == {"q0": "spam", "q1": "ham", "q2": "spam", "q3": "ham"}
    assert task.choices == task.labels == ("ham", "spam", "eggs")
    assert all(task.label_name(e.label) == e.answer for e in task.train)
    hidden = rows | {"label": [-1] * 4}
    datasets.Dataset.from_dict(hidden, features).to_parquet(tmp_path / "d.parquet")
    assert "'label' must be text, found null" in refusal(
        tmp_path / "d.parquet", name="classification"
    )


def test_every_label_of_a_table_is_a_choice_whatever_is_drawn(tmp_path: Path) -> None:
    labels = [f"l{i % 5}" for i in range(50)]
    path = write_parquet(tmp_path / "d.parquet", columns(50, label=labels))
    few, many = (load(path, name="classification", train_examples=n) for n in (2, 40))
    assert few.choices == many.choices
    assert sorted(few.choices or ()) == ["l0", "l1", "l2", "l3", "l4"]


def test_conversations_in_a_table(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": str(i)}]
        for i in range(3)
    ]
    assert answers(load(write_parquet(tmp_path / "d.parquet", {"messages": turns}))) == ALL
    fields = [{"role": ["user", "assistant"], "content": [f"q{i}", str(i)]} for i in range(3)]
    assert answers(load(write_parquet(tmp_path / "e.parquet", {"messages": fields}))) == ALL


@pytest.mark.parametrize("file", ["dataset_dict.json", "state.json"])
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{")
    assert refusal(tmp_path).startswith(f"task.source = '{tmp_path}': cannot be read (")


def test_clinc150_has_ten_domains(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "clinc150"
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}")
    task = load(folder, name="classification", train_examples=500, eval_examples=100)
    assert task.choices is not None
    assert len(task.choices) == 10
    assert {"auto_and_commute", "work", "small_talk"} < set(task.choices)
    assert all(e.answer == task.label_name(e.label) for e in task.train + task.test)
