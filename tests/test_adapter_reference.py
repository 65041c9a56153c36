"""An adapter's files name its base model so that plain PEFT finds it, from any folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from airtune.data import encode, eval_batches, load_task
from airtune.engines.local import LocalEngine
from airtune.models import reference
from airtune.models.builtin import byte_tokenizer, tiny_model
from airtune.models.reference import adapter_readme, base_reference
from airtune.report.console import adapter_lines
from airtune.rounds import run
from airtune.scenario import ModelSection, Scenario, load_scenario
from airtune.training.evaluation import answer_loss

# PEFT asks Transformers for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def named(folder: Path) -> tuple[str, str]:
    config = json.loads((folder / "adapter_config.json").read_text())
    return config["base_model_name_or_path"], (folder / "README.md").read_text()


def loss_of(model, tokenizer, scenario: Scenario) -> float:
    task = load_task(scenario.task, seed=scenario.seed, tokenizer=tokenizer)
    return answer_loss(model, eval_batches(encode(task.test, tokenizer, 48), 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", ["built in", "folder"])
def test_auto_peft_loads_from_another_folder(
    source: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    overrides = ["rounds=1", "task.eval_examples=16", f'model.dtype="{dtype}"']
    if source == "folder":  # given relative to where the run was started
        tiny_model(3).save_pretrained("base")
        byte_tokenizer().save_pretrained("base")
        overrides.append('model.id="base"')
    scenario = load_scenario("tiny", overrides)
    record = run(scenario, out="run")
    monkeypatch.chdir("/")

    adapter = tmp_path / "here" / "run" / "adapter"
    base, readme = named(adapter)
    assert Path(base).is_absolute()
    assert f"base_model: {base}\n" in readme
    assert f"base_model:adapter:{base}" in readme
    assert "AutoPeftModelForCausalLM.from_pretrained(ADAPTER)" in readme
    assert f"base:    {base} (a folder of this machine; see " in adapter_lines(adapter)
    model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="auto")
    loss = loss_of(model, AutoTokenizer.from_pretrained(base), scenario)
    assert loss == pytest.approx(
        record.rounds[-1].eval_loss, rel=1e-6 if dtype == "float32" else 0.02
    )
    # Training moved the loss further than that.
    assert abs(record.description.initial_eval_loss - loss) > 0.1


def test_a_hub_id_stays_one(tmp_path: Path) -> None:
    section = ModelSection(id="someone/some-model")
    base = base_reference(section, seed=0)
    assert (base.name, base.note) == ("someone/some-model", "")


def test_a_built_in_model_from_a_wheel_is_named_as_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "packed_folder", lambda _: tmp_path / "unpacked")
    for name, hub_id in (
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("gemma-3-270m", "google/gemma-3-270m"),
    ):
        base = base_reference(ModelSection(id=name), seed=0)
        assert base.name == hub_id
        assert str(tmp_path / "unpacked") in base.note


def test_a_gguf_file_is_named_too(tmp_path: Path) -> None:
    section = ModelSection(id=str(tmp_path), gguf_file="m.gguf")
    readme = adapter_readme(base_reference(section, seed=0), "m.gguf")
    assert f"from_pretrained({str(tmp_path)!r}, gguf_file='m.gguf')" in readme


@pytest.mark.slow
def test_the_readme_of_a_built_in_model_holds(tmp_path: Path) -> None:
    """The unpacked folder that the note names, and the adapter, have the loss on record."""
    overrides = ["rounds=1", 'model.id="smollm2-135m-instruct"', "task.eval_examples=8",
                 "task.train_examples=40", "training.local_steps=1"]  # fmt: skip
    scenario = load_scenario("tiny", overrides)
    record = run(scenario, out=tmp_path / "run")
    _, readme = named(tmp_path / "run" / "adapter")
    folder = readme.split("They are in ")[1].split(" on this machine")[0]
    base = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    loss = loss_of(model, AutoTokenizer.from_pretrained(folder), scenario)
    assert loss == pytest.approx(record.rounds[-1].eval_loss, rel=1e-5)


def test_an_adapter_names_its_layers_in_one_order(tmp_path: Path) -> None:
    """PEFT holds them as a set, whose order is another one in every process."""
    engine = LocalEngine(load_scenario("tiny", ["task.eval_examples=4"]))
    engine.save_adapter(engine.initial_adapter(), str(tmp_path))
    layers = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert len(layers) == 7
    assert layers == sorted(layers)
