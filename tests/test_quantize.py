"""Base weights in 8 and 4 bits: what is stored, what is computed, cut, trained and billed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.models import quantize
from airtune.models.loading import label_logits, load_model, lora_targets, shape_of
from airtune.models.structure import whole
from airtune.models.workload import BYTES_PER_QUANTIZED_WEIGHT
from airtune.planning.inputs import problem_of_scenario
from airtune.pruning import calibrate, choose, cut
from airtune.pruning.layers import blocks_of, weight_of
from airtune.rounds import run
from airtune.scenario import ModelSection, TrainingSection, load_scenario
from small_models import small_model, text_batch
from test_pruning_submodel import some_structure

KINDS = ("int8", "nf4")
FAMILIES = ["llama-biases", "opt", "phi3", "gpt_neox", "olmo2", "gemma3", "granite"]


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("bitsandbytes", exc_type=ImportError)


def small_quantized(name: str, kind: str):
    model = small_model(name)
    quantize.quantize_blocks(model, shape_of(model), kind)
    return model


def with_unpacked_weights(name: str, kind: str):
    """The same numbers, stored as plain ones."""
    plain, packed = small_model(name), small_quantized(name, kind)
    shape = shape_of(plain)
    for own, other in zip(blocks_of(plain, shape), blocks_of(packed, shape), strict=True):
        for matrix in shape.matrices:
            own.get_submodule(matrix.name).weight.data = weight_of(other.get_submodule(matrix.name))
    return plain, packed, shape


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_near_and_small(kind: str) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    layer = quantize.quantized(kind, weight, None)
    error = (weight_of(layer) - weight).abs()
    if kind == "int8":
        # Half a step, and float16's rounding of the value on the way.
        assert bool((error <= weight.abs().amax(1, keepdim=True) * (1 / 254 + 1 / 1024)).all())
        assert error.max() > weight.abs().max() / 1000
    else:
        # Half the widest gap between NF4's levels, 0.304, of the 64 weights' largest.
        most = weight.reshape(-1, 64).abs().amax(1).repeat_interleave(64).reshape(weight.shape)
        assert bool((error <= most * 0.153).all())
        assert error.max() > 0.1
    values = layer.weight.numel() * layer.weight.element_size()
    scales = 0 if kind == "int8" else 4 * layer.weight.quant_state.absmax.numel()
    assert values + scales == BYTES_PER_QUANTIZED_WEIGHT[kind] * weight.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_computes_with_the_unpacked_weights(name: str, kind: str) -> None:
    plain, packed, shape = with_unpacked_weights(name, kind)
    batch = text_batch()
    with torch.no_grad():
        logits = label_logits(packed, batch)
        torch.testing.assert_close(logits, label_logits(plain, batch), atol=1e-5, rtol=1e-5)
        # Nothing cut, nothing changed.
        assert torch.equal(label_logits(cut(packed, shape, whole(shape)), batch), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt_neox"])
def test_a_cut_unpacks_and_quantizes_again(name: str, kind: str) -> None:
    plain, packed, shape = with_unpacked_weights(name, kind)
    structure = some_structure(shape)
    small, expected = cut(packed, shape, structure), cut(plain, shape, structure)
    for own, other in zip(blocks_of(small, shape), blocks_of(expected, shape), strict=True):
        for matrix in shape.matrices:
            layer, wanted = own.get_submodule(matrix.name), other.get_submodule(matrix.name).weight
            assert quantize.kind_of(layer) == kind
            again = weight_of(quantize.quantized(kind, wanted, None))
            assert torch.equal(weight_of(layer), again)
            assert (again - wanted).norm() / wanted.norm() < (0.01 if kind == "int8" else 0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_refitted_and_trained_like_the_unpacked_weights(kind: str) -> None:
    plain, packed, shape = with_unpacked_weights("llama", kind)
    batch = text_batch(rows=24, length=24)
    statistics = calibrate(packed, shape, [batch])
    structure = choose(statistics, shape, 0.3)
    submodel = cut(packed, shape, structure, statistics)
    with torch.no_grad():
        full = label_logits(packed, batch)
        errors = [
            float((label_logits(other, batch) - full).square().mean())
            for other in (submodel, cut(packed, shape, structure))
        ]
    assert errors[0] < errors[1]

    section = TrainingSection(lora_rank=2)
    gradients = []
    for model in (packed, plain):
        config = lora_config(section, lora_targets(shape))
        with adapted(model, config, seed=1) as peft_model:
            start = values_of(peft_model)
            loss = label_logits(peft_model, batch).logsumexp(-1).sum()
            loss.backward()
            gradients.append(
                {n: p.grad for n, p in peft_model.named_parameters() if p.grad is not None}
            )
    assert len(gradients[0]) == len(start)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "bfloat16"), ("nf4", "float32")])
def test_a_run(kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path / "cache"))
    scenario = load_scenario(
        "tiny",
        ["rounds=2", "task.eval_examples=16", f'model.quantize="{kind}"', f'model.dtype="{dtype}"'],
    )
    record = run(scenario, out=tmp_path / "run")
    assert record.description is not None
    assert record.rounds[-1].eval_loss < record.description.initial_eval_loss - 0.1
    assert any(client.pruning > 0.1 for client in record.rounds[0].clients)
    assert f"weights quantized to {kind}" in (tmp_path / "run/adapter/README.md").read_text()
    loaded = load_model(scenario.model, seed=scenario.seed)
    assert loaded.fingerprint == record.description.model_fingerprint


def test_less_memory_is_a_smaller_pruning_rate() -> None:
    """SmolLM2 on a device that holds it whole with 8-bit weights, and not with 32-bit ones."""
    least = {}
    for kind in ("", *KINDS):
        overrides = [f'model.quantize="{kind}"'] if kind else []
        scenario = load_scenario(
            "demo", ["task.max_tokens=32", "training.batch_size=1", *overrides]
        )
        devices = tuple(d.model_copy(update={"memory_bytes": 5e8}) for d in scenario.devices)
        problem = problem_of_scenario(scenario.model_copy(update={"devices": devices}))
        least[kind] = float(problem.min_pruning[0])
    assert least[""] > 0.2
    assert least["int8"] == least["nf4"] == 0


def test_what_cannot_be_quantized_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"'nf4': gpt2 stores its weights as inputs x outputs"):
        small_quantized("gpt2", "nf4")
    scenario = load_scenario("tiny", ['model.quantize="int8"', 'aggregation.rule="flora"'])
    with pytest.raises(InputError, match=r"'flora' changes the base weights every round"):
        rule_of(scenario)
    quantize._bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"needs bitsandbytes: install the extra 'quantize'"):
        load_model(ModelSection(id="tiny", quantize="int8"), seed=0)
    quantize._bitsandbytes.cache_clear()
