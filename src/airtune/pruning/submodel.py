"""Cut a model: a smaller dense one that shares everything it does not change."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from airtune.models.structure import Structure, check_structure, entries
from airtune.models.workload import Matrix, ModelShape
from airtune.pruning.layers import blocks_of, layer_like, weight_of
from airtune.pruning.reconstruct import refit
from airtune.pruning.statistics import BlockStatistics, Statistics, SublayerStatistics


class NoAttention(nn.Module):
    """Stands where a block's attention was: all that is left of it is the output's constant."""

    def __init__(self, constant: Tensor | None) -> None:
        super().__init__()
        self.constant: Tensor | None
        self.register_buffer("constant", constant, persistent=False)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        """Return the constant for every token, in the shape of an attention's answer."""
        output = torch.zeros_like(hidden_states)
        return output if self.constant is None else output + self.constant, None


class NoBlock(nn.Module):
    """Stands where a whole block was: the residual stream passes unchanged."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the input."""
        return hidden_states


@dataclass(frozen=True)
class Added:
    """What an adapter adds to an output projection's weight."""

    columns: Tensor
    """B, (outputs, rank)."""
    rows: Tensor
    """A, (rank, inputs)."""
    scale: float
    own_rank: int
    """The submodel's own adapter goes on from so many of the ranks, the first ones."""

    def whole(self) -> Tensor:
        """Return what all ranks add, (outputs, inputs)."""
        return self.scale * self.columns @ self.rows

    def own(self) -> Tensor:
        """Return the part of it that the submodel has in its own adapter."""
        return self.scale * self.columns[:, : self.own_rank] @ self.rows[: self.own_rank]


def cut(
    model: nn.Module,
    shape: ModelShape,
    structure: Structure,
    statistics: Statistics | None = None,
) -> nn.Module:
    """Return the submodel with the structure's units; the given model is not changed.

    Weights that are not cut are shared with the model, not copied. Names of layers and blocks
    stay those of the full model. With the structure that keeps everything, logits are identical.

    Args:
        model: a causal language model, frozen.
        shape: of the model.
        structure: what to keep.
        statistics: refit the output projections on this calibration; without it, the submodel
            equals the model with the other units silenced.

    Raises:
        InputError: the structure is not one of this model, or the statistics are another
            model's, or order the units otherwise than the structure does.
    """
    layers = cut_layers(model, shape, structure, statistics)
    submodel = skeleton(model, shape, structure)
    blocks = blocks_of(submodel, shape)
    for (index, name), layer in layers.items():
        blocks[index].set_submodule(name, layer)
    for index in range(shape.blocks):
        groups = len(structure.groups[index])
        if 0 < groups < shape.kv_heads:
            tell_head_counts(blocks[index].get_submodule(shape.table.attention), groups, shape)
    return submodel


def skeleton(model: nn.Module, shape: ModelShape, structure: Structure) -> nn.Module:
    """Return the model's modules anew, on the very same weights, without the dropped blocks."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    submodel: Any = copy.deepcopy(model, shared)
    submodel.config.use_cache = False  # caches count on every block having attention
    blocks = blocks_of(submodel, shape)
    for index in range(shape.blocks):
        if structure.dropped(index):
            blocks[index] = NoBlock()
    return submodel


def cut_layers(
    model: nn.Module,
    shape: ModelShape,
    structure: Structure,
    statistics: Statistics | None = None,
    added: Mapping[tuple[int, str], Added] | None = None,
) -> dict[tuple[int, str], nn.Module]:
    """Return what a submodel has in place of the model's own layers, by block and name.

    With `added`, what is preserved is the output of a trained model: a projection is refitted
    with what an adapter adds to it, and then the part is taken off again that the submodel has in
    an adapter of its own.

    Args:
        model: as for `cut`.
        shape: as for `cut`.
        structure: as for `cut`.
        statistics: as for `cut`; with `added`, of the trained model.
        added: by block and name of the output projection.

    Returns:
        Smaller linear layers, and a `NoAttention` where an attention was.

    Raises:
        InputError: as for `cut`.
    """
    check_structure(structure, shape)
    if statistics is not None:
        statistics.check_shape(shape)
    layers: dict[tuple[int, str], nn.Module] = {}
    for index, block in enumerate(blocks_of(model, shape)):
        if not structure.dropped(index):
            found = _cut_block(block, index, shape, structure, statistics, added or {})
            layers |= {(index, name): layer for name, layer in found}
    return layers


def stand_in(
    structure: Structure, statistics: Statistics | None, block: int
) -> BlockStatistics | None:
    """Return what a block's MLP computes in place of the block after it, if that one is gone."""
    if statistics is None or block + 1 == len(statistics.blocks):
        return None
    after = statistics.blocks[block + 1]
    return after if structure.dropped(block + 1) and after.replacement.shape[1] else None


def _cut_block(
    block: nn.Module,
    index: int,
    shape: ModelShape,
    structure: Structure,
    statistics: Statistics | None,
    added: Mapping[tuple[int, str], Added],
) -> Iterator[tuple[str, nn.Module]]:
    for unit, total in (("group", shape.kv_heads), ("mlp", shape.mlp_channels)):
        units = structure.units(index, unit)
        extra = stand_in(structure, statistics, index) if unit == "mlp" else None
        if len(units) == total and extra is None:
            continue
        layers = [m for m in shape.matrices if unit in (m.inputs.unit, m.outputs.unit)]
        if not units:
            yield (
                shape.table.attention,
                _no_attention(
                    block, index, layers, statistics, added.get((index, layers[-1].name))
                ),
            )
            continue
        for matrix in layers:
            layer = block.get_submodule(matrix.name)
            if matrix.outputs.unit == unit:
                if len(units) == total:
                    continue
                kept = _index(entries(matrix.outputs, units, total), layer)
                new = layer_like(layer, weight_of(layer)[kept], _part(layer.bias, kept))
            else:
                sublayer = None if statistics is None else statistics.sublayer(index, unit)
                by_adapter = added.get((index, matrix.name))
                new = _cut_output(layer, matrix, units, total, sublayer, extra, by_adapter)
            yield matrix.name, new


def _cut_output(
    layer: nn.Module,
    matrix: Matrix,
    units: tuple[int, ...],
    total: int,
    sublayer: SublayerStatistics | None,
    extra: BlockStatistics | None,
    added: Added | None,
) -> nn.Module:
    """Cut the columns of an output projection, and refit them where there are statistics.

    With `extra`, what is preserved is the projection's output plus that replacement's; with `added`
    plus the adapter's.
    """
    columns = _index(entries(matrix.inputs, units, total), layer)
    bias: Any = layer.bias
    if sublayer is None:
        return layer_like(layer, weight_of(layer)[:, columns], bias)
    features = sublayer.ordered_features.to(columns.device)
    weight = weight_of(layer).float()
    constant = weight.new_zeros(len(weight))
    if extra is not None:
        weight = weight + extra.replacement.to(weight)
        constant = extra.constant.to(weight)
    if added is not None:
        weight = weight + added.whole().to(weight)
    kept = torch.isin(features, columns)
    fitted = refit(weight[:, features], sublayer.factor_on(weight), kept)
    mean = sublayer.mean.to(weight)
    constant = constant + weight @ mean - fitted @ mean[features[kept]]
    # From the order of importance back to the order of the model.
    fitted = fitted[:, torch.argsort(features[kept])]
    if added is not None:
        fitted = fitted - added.own().to(weight)[:, columns]
    return layer_like(layer, fitted, constant if bias is None else bias.float() + constant)


def _no_attention(
    block: nn.Module,
    index: int,
    layers: list[Matrix],
    statistics: Statistics | None,
    added: Added | None,
) -> NoAttention:
    layer = block.get_submodule(layers[-1].name)
    bias: Any = layer.bias
    constant = bias
    if statistics is not None:
        weight = weight_of(layer).float()
        if added is not None:
            weight = weight + added.whole().to(weight)
        mean = weight @ statistics.sublayer(index, "group").mean.to(weight)
        constant = (mean if bias is None else mean + bias.float()).to(weight_of(layer).dtype)
    return NoAttention(constant)


def tell_head_counts(attention: nn.Module, groups: int, shape: ModelShape) -> None:
    """Correct what attention modules remember of their size; most only reshape by head_dim."""
    queries = groups * (shape.query_heads // shape.kv_heads)
    counts = {"queries": queries, "groups": groups, "width": queries * shape.head_dim}
    family, known = shape.table, cast(Any, attention)
    for name, count in family.head_counts.items():
        setattr(known, name, counts[count])
    if family.head_counts_in_config:
        known.config = copy.copy(known.config)
        setattr(known.config, family.keys["query_heads"], queries)
        setattr(known.config, family.keys["kv_heads"], groups)


def _index(kept: Any, layer: nn.Module) -> Tensor:
    known: Any = layer
    return torch.as_tensor(kept, device=known.weight.device)


def _part(bias: Any, kept: Tensor) -> Tensor | None:
    return None if bias is None else bias[kept]
