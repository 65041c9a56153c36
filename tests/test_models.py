"""Loading: built-in models, folders, refusals; logits only where a label is predicted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from airtune.errors import InputError
from airtune.models import checkpoints
from airtune.models.builtin import byte_tokenizer, tiny_model
from airtune.models.loading import (
    fingerprint_of,
    label_logits,
    load_model,
    longest_text,
    prepared,
    shape_of,
)
from airtune.models.shapes import check_context
from airtune.models.workload import SHAPES, ModelShape
from airtune.scenario import ModelSection
from small_models import NAMES, small_model, text_batch

TINY = ModelSection(id="tiny")


def test_tiny_is_small_seeded_and_frozen(capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(TINY, seed=3)
    again, other = load_model(TINY, seed=3), load_model(TINY, seed=4)
    assert loaded.shape == SHAPES["tiny"]
    assert sum(p.numel() for p in loaded.model.parameters()) < 20_000
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.fingerprint == again.fingerprint != other.fingerprint
    assert capfd.readouterr() == ("", "")


def test_tiny_leaves_the_global_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    load_model(TINY, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_byte_tokenizer_goes_there_and_back() -> None:
    tokenizer = load_model(TINY, seed=0).tokenizer
    text = "How much is 3 + 4? Ünï → 7\n#### 7"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert max(ids) < SHAPES["tiny"].vocab
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_bfloat16() -> None:
    model = load_model(ModelSection(id="tiny", dtype="bfloat16"), seed=0).model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_label_logits_are_those_of_the_whole_model(name: str) -> None:
    model = small_model(name)
    batch = text_batch()
    with torch.no_grad():
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        logits = label_logits(model, batch)
    wanted = batch.labels[:, 1:] != -100
    assert len(logits) == int(wanted.sum())
    torch.testing.assert_close(logits, whole[:, :-1][wanted], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_shape_matches_the_modules(name: str) -> None:
    model = small_model(name)
    shape = shape_of(model)
    block = model.get_submodule(shape.table.blocks)[0]
    for matrix in shape.matrices:
        units = {"mlp": shape.mlp_channels, "group": shape.kv_heads, "hidden": 1}
        weight = block.get_submodule(matrix.name).weight
        size = (
            matrix.outputs.size(units[matrix.outputs.unit]),
            matrix.inputs.size(units[matrix.inputs.unit]),
        )
        assert tuple(weight.shape) == (size[::-1] if shape.table.transposed else size)
    head = model.get_output_embeddings().weight
    assert tuple(head.shape) == (shape.vocab, shape.head_inputs)
    assert shape.tied == (head is model.get_input_embeddings().weight)


def test_fingerprint_sees_weights_and_configuration() -> None:
    one, other = small_model("llama"), small_model("llama", seed=1)
    assert fingerprint_of(one) == fingerprint_of(small_model("llama"))
    assert fingerprint_of(one) != fingerprint_of(other)
    assert fingerprint_of(one) != fingerprint_of(one.to(torch.bfloat16))


def test_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(TINY, seed=0)
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    capfd.readouterr()
    again = load_model(ModelSection(id=str(tmp_path)), seed=9)
    assert again.fingerprint == loaded.fingerprint
    assert again.tokenizer("abc")["input_ids"] == loaded.tokenizer("abc")["input_ids"]
    assert capfd.readouterr() == ("", "")


def test_unknown_architecture_is_refused_with_the_list(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match=r"'bert' cannot be cut; known: llama, .*gpt_neox"):
        load_model(ModelSection(id=str(tmp_path)), seed=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_longest_text_is_known_of_every_family(name: str) -> None:
    model = small_model(name)
    shape = shape_of(model)
    config = model.config.to_dict()
    longest = config[shape.table.context_key]
    assert longest_text(model) == longest
    check_context(config, longest, name=name)
    with pytest.raises(InputError, match=f"reads at most {longest} tokens"):
        check_context(config, longest + 1, name=name)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts = 8"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "num_experts = 128"),
        ({"model_type": "granitemoe"}, "'granitemoe' is a Mixture-of-Experts:"),
        ({"model_type": "llama", "n_routed_experts": 4}, "n_routed_experts = 4"),
    ],
)
def test_experts_are_refused_with_the_reason(config: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match="each token passes a few of the experts only") as caught:
        ModelShape.of_config(config)
    assert said in str(caught.value)


def test_unusable_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "missing", "no such folder"),
        (tmp_path, "there is no config.json in the folder"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load_model(ModelSection(id=str(folder)), seed=0)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "hub_reachable", lambda: False)
    with pytest.raises(InputError, match="the hub cannot be reached") as caught:
        load_model(ModelSection(id="airtune-test/no-such-model"), seed=0)
    assert "airtune-test/no-such-model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_refused() -> None:
    model = tiny_model(0)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"'broken': weights of model\.layers\.1\.mlp\.up_proj"):
        prepared(model, byte_tokenizer(), name="broken")


def test_a_missing_pad_token_becomes_the_end_of_text() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = None
    loaded = prepared(tiny_model(0), tokenizer, name="m")
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id


@pytest.mark.slow
def test_smollm2_from_its_wheel(capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(ModelSection(), seed=0)
    assert loaded.shape == SHAPES["smollm2-135m-instruct"]
    assert capfd.readouterr() == ("", "")
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = int(loaded.model(input_ids=ids).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]).strip() == "Paris"
    assert isinstance(loaded.model, nn.Module)
