"""Adapters there and back: identity on what is kept, nothing anywhere else."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model_state_dict

from airtune.adapters.slices import gather_adapter, scatter_adapter
from airtune.errors import RunError
from airtune.models.loading import shape_of
from airtune.models.structure import Structure, whole
from airtune.models.workload import adapter_size
from airtune.pruning import cut
from assigned import mode
from small_models import NAMES, small_model, text_batch
from test_pruning_submodel import some_structure
from test_workload import RANK, with_lora


def full_adapter(name: str):
    peft_model = with_lora(small_model(name), shape_of(small_model(name)))
    state = get_peft_model_state_dict(peft_model)
    rng = torch.Generator().manual_seed(3)
    return {key: 0.3 * torch.randn(value.shape, generator=rng) for key, value in state.items()}


def load(peft_model, adapter) -> None:
    own = {
        key.replace(".default.", "."): value
        for key, value in peft_model.named_parameters()
        if "lora_" in key
    }
    assert own.keys() == adapter.keys()
    with torch.no_grad():
        for key, value in own.items():
            assert value.shape == adapter[key].shape
            value.copy_(adapter[key])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("drop", [None, 1])
def test_there_and_back_is_the_identity_on_kept_entries(name: str, drop: int | None) -> None:
    shape = shape_of(small_model(name))
    structure = some_structure(shape, drop_block=drop, no_attention=0)
    adapter = full_adapter(name)
    sub = gather_adapter(adapter, structure, shape)
    values, held = scatter_adapter(sub, structure, shape)
    assert values.keys() == held.keys() == adapter.keys()
    for key, value in adapter.items():
        assert torch.equal(values[key][held[key]], value[held[key]])
        assert not values[key][~held[key]].any()
    assert sum(int(mask.sum()) for mask in held.values()) == adapter_size(
        shape, structure.sizes, mode(RANK)
    )


@pytest.mark.parametrize("name", NAMES)
def test_nothing_cut_is_nothing_changed(name: str) -> None:
    shape = shape_of(small_model(name))
    adapter = full_adapter(name)
    sub = gather_adapter(adapter, whole(shape), shape)
    values, held = scatter_adapter(sub, whole(shape), shape)
    for key, value in adapter.items():
        assert torch.equal(sub[key], value)
        assert torch.equal(values[key], value)
        assert held[key].all()


@pytest.mark.parametrize("name", NAMES)
def test_submodel_computes_what_the_full_adapter_does_on_its_units(name: str) -> None:
    """The gathered entries are the right ones: the adapted submodel is the adapted model,
    merged into the weights, and then cut."""
    model = small_model(name)
    shape = shape_of(model)
    structure = some_structure(shape)
    adapter = full_adapter(name)
    submodel = with_lora(cut(model, shape, structure), shape)
    load(submodel, gather_adapter(adapter, structure, shape))
    merged = with_lora(small_model(name), shape)
    load(merged, adapter)
    expected = cut(merged.merge_and_unload(), shape, structure)
    ids = text_batch().input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            submodel(input_ids=ids).logits, expected(input_ids=ids).logits, atol=2e-4, rtol=1e-4
        )


def test_adapters_that_do_not_fit_are_refused() -> None:
    shape = shape_of(small_model("llama"))
    structure = some_structure(shape)
    adapter = full_adapter("llama")
    key = next(iter(adapter))
    with pytest.raises(RunError, match="is missing"):
        gather_adapter({k: v for k, v in adapter.items() if k != key}, structure, shape)
    with pytest.raises(RunError, match="has shape"):
        gather_adapter({**adapter, key: adapter[key][:, :-1]}, structure, shape)
    with pytest.raises(RunError, match="has shape"):
        scatter_adapter(adapter, structure, shape)
    with pytest.raises(RunError, match="no lora_A"):
        scatter_adapter({}, Structure((), ()), shape)
