"""Cutting: exact against silencing, identical at rate 0, dense, trainable, refitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from airtune.errors import InputError
from airtune.models.loading import label_logits, shape_of
from airtune.models.structure import Structure, entries, whole
from airtune.models.workload import kept_parameters, realised_pruning
from airtune.pruning import calibrate, choose, cut
from airtune.pruning.layers import blocks_of, output_projection
from small_models import NAMES, small_model, text_batch


def some_structure(shape, *, drop_block: int | None = None, no_attention: int | None = None):
    """Keep an uneven choice of units, different in every block."""
    channels, groups = [], []
    for block in range(shape.blocks):
        channels.append(tuple(c for c in range(shape.mlp_channels) if (c * 7 + block) % 5 > 1))
        kept = tuple(g for g in range(shape.kv_heads) if (g + block) % 2 == 0)
        groups.append(kept or (0,))
    if drop_block is not None:
        channels[drop_block] = groups[drop_block] = ()
    if no_attention is not None:
        groups[no_attention] = ()
    return Structure(tuple(channels), tuple(groups))


def silenced_logits(model, shape, structure, ids):
    """Zero what the output projections read of the units that are not kept; skip lost blocks."""
    handles = []
    for index, block in enumerate(blocks_of(model, shape)):
        if structure.dropped(index):
            handles.append(
                block.register_forward_hook(
                    lambda _, args, kwargs, __: args[0] if args else kwargs["hidden_states"],
                    with_kwargs=True,
                )
            )
            continue
        for unit, total in (("group", shape.kv_heads), ("mlp", shape.mlp_channels)):
            matrix = output_projection(shape, unit)
            kept = structure.units(index, unit)
            keep = torch.zeros(matrix.inputs.size(total))
            if kept:
                keep[torch.from_numpy(entries(matrix.inputs, kept, total))] = 1
            handles.append(
                block.get_submodule(matrix.name).register_forward_pre_hook(
                    lambda _, args, keep=keep: (args[0] * keep.to(args[0]),)
                )
            )
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["units", "block", "attention"])
def test_cut_equals_silencing(name: str, case: str) -> None:
    model = small_model(name)
    shape = shape_of(model)
    structure = some_structure(
        shape,
        drop_block=1 if case == "block" else None,
        no_attention=0 if case == "attention" else None,
    )
    ids = text_batch(padded=False).input_ids
    with torch.no_grad():
        before = model(input_ids=ids).logits
        logits = cut(model, shape, structure)(input_ids=ids).logits
        after = model(input_ids=ids).logits
    expected = silenced_logits(model, shape, structure, ids)
    assert not torch.allclose(expected, before, atol=1e-3)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(before, after)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_zero_is_identical(name: str, dtype: torch.dtype) -> None:
    model = small_model(name).to(dtype)
    shape = shape_of(model)
    batch = text_batch()
    statistics = calibrate(model, shape, [batch])
    structure = choose(statistics, shape, 0.0)
    submodel = cut(model, shape, structure, statistics)
    assert structure == whole(shape)
    with torch.no_grad():
        assert torch.equal(
            submodel(input_ids=batch.input_ids).logits, model(input_ids=batch.input_ids).logits
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refitted_cut_is_dense_and_closer(name: str, dtype: torch.dtype) -> None:
    model = small_model(name).to(dtype)
    shape = shape_of(model)
    batch = text_batch(rows=24, length=24)
    statistics = calibrate(model, shape, [batch])
    structure = choose(statistics, shape, 0.4)
    refitted, plain = (cut(model, shape, structure, s) for s in (statistics, None))
    for submodel in (refitted, plain):
        in_blocks = sum(
            submodel_layer(submodel, shape, block, m.name)
            for block in range(shape.blocks)
            for m in shape.matrices
        )
        assert in_blocks == kept_parameters(shape, structure.sizes)
    with torch.no_grad():
        full = label_logits(model, batch).float()
        errors = [
            (label_logits(submodel, batch).float() - full).square().mean()
            for submodel in (refitted, plain)
        ]
    assert errors[0] < errors[1]


def submodel_layer(model: nn.Module, shape, block: int, name: str) -> int:
    try:
        return blocks_of(model, shape)[block].get_submodule(name).weight.numel()
    except AttributeError:  # the attention was left out altogether
        return 0


def test_submodel_shares_what_it_does_not_cut() -> None:
    model = small_model("llama")
    shape = shape_of(model)
    submodel = cut(model, shape, some_structure(shape))
    assert submodel.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert submodel.model.norm.weight is model.model.norm.weight
    own, full = (sum(p.numel() for p in m.parameters()) for m in (submodel, model))
    lost = shape.block_parameters * realised_pruning(shape, some_structure(shape).sizes)
    assert own == pytest.approx(full - lost)


def test_structures_that_do_not_fit_are_refused() -> None:
    model = small_model("llama")
    shape = shape_of(model)
    full = whole(shape)
    for channels, groups, message in (
        (full.channels[:2], full.groups, "2 blocks for a model of 3"),
        (((24,), *full.channels[1:]), full.groups, "block 0: MLP channels"),
        (((3, 3), *full.channels[1:]), full.groups, "ascending"),
        (((), *full.channels[1:]), full.groups, "attention without any MLP channel"),
    ):
        with pytest.raises(InputError, match=message):
            cut(model, shape, Structure(channels, groups))


def test_structure_of_other_statistics_is_refused() -> None:
    model = small_model("llama")
    shape = shape_of(model)
    statistics = calibrate(model, shape, [text_batch()])
    other = small_model("gpt2")
    with pytest.raises(InputError, match="do not fit a model"):
        cut(other, shape_of(other), whole(shape_of(other)), statistics)
