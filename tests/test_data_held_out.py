"""Text that is held out of training stands in for the test set, and is none of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airtune.data import load_task
from airtune.scenario import TaskSection


@pytest.mark.parametrize("parts", [("train",), ("train", "test")])
def test_held_out_text_is_neither_tested_nor_trained_on(
    parts: tuple[str, ...], tmp_path: Path
) -> None:
    for part in parts:
        rows = [{"prompt": f"{part} {k}", "answer": str(k)} for k in range(60)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{part}.jsonl").write_text(text)
    values = {"name": "prompt-answer", "source": str(tmp_path), "train_examples": 20,
              "eval_examples": 10}  # fmt: skip
    judged = load_task(TaskSection(**values), seed=3)
    held_out = load_task(TaskSection(**values, eval_part="train"), seed=3)
    tested = {example.prompt for example in judged.test}
    ours = {example.prompt for example in held_out.test}
    assert len(ours) == 10
    assert not ours & tested
    assert not ours & {example.prompt for example in held_out.train}
    assert not tested & {example.prompt for example in held_out.train}
    assert all("train" in prompt for prompt in ours)
