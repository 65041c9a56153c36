"""Models with an adapter's layers in place, kept from client to client."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from peft import LoraConfig, PeftModel
from torch import nn

from airtune.adapters.names import Adapter
from airtune.adapters.placed import PlacedAdapter
from airtune.models.structure import Structure
from airtune.models.workload import ModelShape
from airtune.pruning import Statistics
from airtune.pruning.layers import blocks_of
from airtune.pruning.submodel import Added, NoAttention, cut_layers, skeleton, tell_head_counts

MOST_KINDS = 8
"""Models with layers in place that are kept: the last ones used. Each is the modules of one model,
on shared weights, and one adapter."""


class Placements:
    """Keeps PEFT's layers in place over clients, rounds, ranks and pruning rates.

    Submodels differ in which blocks have an attention, and which blocks there are; of each such
    kind one is kept, and refilled with the layers that are cut for a client. The layers that are
    not cut are the model's own.

    Args:
        model: a causal language model of Transformers, frozen, on the device to compute on.
        shape: of the model.
    """

    def __init__(self, model: nn.Module, shape: ModelShape) -> None:
        self._model, self._shape = model, shape
        self._kept: OrderedDict[tuple[str, ...], PlacedAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    @contextmanager
    def submodel(
        self,
        structure: Structure,
        config: LoraConfig,
        adapter: Adapter,
        statistics: Statistics | None = None,
        *,
        freezes_a: bool = False,
        added: Mapping[tuple[int, str], Added] | None = None,
    ) -> Iterator[tuple[PlacedAdapter, dict[str, nn.Parameter]]]:
        """Lend the submodel of a structure for the length of a `with` block, ready to be trained.

        Args:
            structure: what the submodel keeps.
            config: the LoRA configuration.
            adapter: where to start, in the submodel's shapes.
            statistics: refit the output projections on this calibration.
            freezes_a: train B alone.
            added: as for `airtune.pruning.submodel.cut_layers`.

        Yields:
            The submodel with the adapter on it, and the parameters to train by their names.

        Raises:
            InputError: as `airtune.pruning.cut`.
            RunError: the adapter does not fit.
        """
        shape = self._shape
        layers = cut_layers(self._model, shape, structure, statistics, added)
        placed = self._of_kind(structure, config)
        blocks = blocks_of(placed.peft_model.get_base_model(), shape)
        try:
            for block, groups in zip(blocks, structure.groups, strict=True):
                if groups:
                    attention = block.get_submodule(shape.table.attention)
                    tell_head_counts(attention, len(groups), shape)
            bases = {}
            for (index, name), layer in layers.items():
                if isinstance(layer, NoAttention):
                    blocks[index].set_submodule(name, layer)
                else:
                    bases[f"base_model.model.{shape.table.blocks}.{index}.{name}"] = layer
            trained = placed.refill(config, adapter, bases, freezes_a=freezes_a)
            yield placed, trained
        finally:
            placed.release()

    @contextmanager
    def whole(self, config: LoraConfig, adapter: Adapter) -> Iterator[PeftModel]:
        """Lend the whole model with an adapter for the length of a `with` block, to be evaluated.

        Args:
            config: the LoRA configuration.
            adapter: the full model's.

        Raises:
            RunError: the adapter does not fit.
        """
        placed = self._known(("whole",))
        if placed is None:
            placed = self._keep(("whole",), PlacedAdapter(_copied(self._model), config))
            placed.peft_model.eval()
        placed.refill(config, adapter)
        try:
            yield placed.peft_model
        finally:
            placed.release()

    def _of_kind(self, structure: Structure, config: LoraConfig) -> PlacedAdapter:
        kind = tuple(
            "none" if structure.dropped(index) else "all" if groups else "mlp"
            for index, groups in enumerate(structure.groups)
        )
        placed = self._known(kind)
        if placed is not None:
            return placed
        model = skeleton(self._model, self._shape, structure)
        for block, what in zip(blocks_of(model, self._shape), kind, strict=True):
            if what == "mlp":
                block.set_submodule(self._shape.table.attention, NoAttention(None))
        placed = PlacedAdapter(model, config)
        placed.peft_model.train()
        return self._keep(kind, placed)

    def _known(self, kind: tuple[str, ...]) -> PlacedAdapter | None:
        if kind in self._kept:
            self._kept.move_to_end(kind)
        return self._kept.get(kind)

    def _keep(self, kind: tuple[str, ...], placed: PlacedAdapter) -> PlacedAdapter:
        self._kept[kind] = placed
        while len(self._kept) > MOST_KINDS:
            self._kept.popitem(last=False)
        return placed


def _copied(model: nn.Module) -> nn.Module:
    """Return a model's modules anew, on the very same weights."""
    shared = {id(t): t for t in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared)
