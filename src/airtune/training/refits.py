"""What clients are refitted by once the calibration text has been read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from airtune.adapters.lora import merged_into_base
from airtune.adapters.names import Adapter, pairs
from airtune.data import Encoded, eval_batches
from airtune.models.workload import ModelShape
from airtune.pruning import Statistics
from airtune.pruning.layers import output_projection
from airtune.pruning.rereading import reread
from airtune.pruning.statistics import UNITS
from airtune.pruning.submodel import Added
from airtune.scenario import Scenario
from airtune.training.client import ClientJob


class Refits:
    """Reads calibration text again where a job says that the model has changed since.

    Args:
        scenario: the run's.
        model: the base model, on the device to compute on.
        shape: of the model.
    """

    def __init__(self, scenario: Scenario, model: nn.Module, shape: ModelShape) -> None:
        self._scenario, self._model, self._shape = scenario, model, shape
        self._scale = scenario.training.lora_scale
        # By whose text: in which model, and the statistics. A round's number would not do: one
        # worker may serve several runs.
        self._read: dict[int | None, tuple[Adapter, Statistics]] = {}

    def statistics(
        self, owner: int | None, job: ClientJob, before: Statistics, texts: Sequence[Encoded]
    ) -> Statistics:
        """Return the statistics that a job's client is refitted by.

        Args:
            owner: whose text it is; None: the server's.
            job: the client's.
            before: of the model before training.
            texts: of the calibration.
        """
        if job.refit is None:
            return before
        read_in, known = self._read.get(owner, ({}, before))
        if not _same(read_in, job.refit.adapter):
            read = texts[: self._scenario.pruning.refit_examples]
            batches = eval_batches(read, self._scenario.evaluation.batch_size)
            transposed = self._shape.table.transposed
            with merged_into_base(
                self._model, job.refit.adapter, self._scale, transposed=transposed
            ):
                known = reread(before, self._model, self._shape, batches)
            self._read[owner] = job.refit.adapter, known
        return known

    def added(self, job: ClientJob) -> Mapping[tuple[int, str], Added] | None:
        """Return what the adapter of the reading adds to the output projections.

        The client's own adapter goes on from the first ranks of it, as many as it has.
        """
        if job.refit is None:
            return None
        adapter, own_rank, table = job.refit.adapter, job.assignment.mode.rank, self._shape.table
        wanted = {
            f"base_model.model.{table.blocks}.{block}.{name}.lora_A.weight": (block, name)
            for block in range(self._shape.blocks)
            for name in (output_projection(self._shape, unit).name for unit in UNITS)
        }
        return {
            wanted[a]: Added(adapter[b], adapter[a], self._scale, own_rank)
            for a, b in pairs(adapter)
            if a in wanted
        }


def _same(one: Adapter, other: Adapter) -> bool:
    return one is other or (
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    )
