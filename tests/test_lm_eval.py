"""The recipe of docs/lm_eval.md, on a small task of its own and without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from airtune.rounds import run
from airtune.scenario import load_scenario

TASK = """
task: small_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["0", "1"]
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_scores_the_adapter_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is an extra: airtune[lm-eval]")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import AutoPeftModelForCausalLM

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(load_scenario("tiny", ["rounds=1"]), out=tmp_path / "run")
    adapter = tmp_path / "run" / "adapter"
    base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    rows = [{"question": f"{a} + {b} =", "label": (a + b) % 2} for a in range(3) for b in range(2)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "small.yaml").write_text(TASK.format(file=tmp_path / "test.jsonl"))

    model = HFLM(pretrained=base, peft=str(adapter), device="cpu", batch_size=2)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model, tasks=["small_choice"], task_manager=tasks, bootstrap_iters=0
    )
    assert found is not None
    assert 0 <= found["results"]["small_choice"]["acc,none"] <= 1

    # What it scored is the base model with the run's adapter: the same log-likelihoods.
    tuned = AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    for sample in found["samples"]["small_choice"]:
        for (context, choice), (said, _) in zip(
            [one for one in sample["arguments"]], sample["filtered_resps"], strict=True
        ):
            before = model.tok_encode(context)
            whole = model.tok_encode(context + choice)
            with torch.no_grad():
                logits = tuned(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(-1)
            wanted = range(len(before), len(whole))
            own = sum(float(logits[i - 1, whole[i]]) for i in wanted)
            assert float(said) == pytest.approx(own, abs=1e-4)
