"""The default engine: one client after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch

from airtune.adapters.names import Adapter
from airtune.models.workload import StepTokens
from airtune.scenario import Scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate, failure_of
from airtune.training.worker import Evaluation, Federation, MeasuredCosts, Worker


class LocalEngine:
    """Runs every client in this process; implements `airtune.engines.Engine`.

    Args:
        scenario: whose clients to work for.
        device: where to compute; None takes CUDA where there is one.
        threads: of PyTorch on the CPU; None leaves its own choice, all cores.
    """

    def __init__(
        self, scenario: Scenario, *, device: str | None = None, threads: int | None = None
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._worker = Worker(scenario, device=device)

    def federation(self) -> Federation:
        """Describe clients, data and model."""
        return self._worker.federation

    def initial_adapter(self) -> Adapter:
        """Return the adapter that the first round starts from."""
        return self._worker.initial_adapter()

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the size of each local step that a client will do in a round."""
        return self._worker.step_tokens(round, client)

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs in order; a client that fails numerically is reported, not raised."""
        for job in jobs:
            try:
                yield self._worker.train(job)
            except (RuntimeError, ArithmeticError, MemoryError) as error:
                yield failure_of(job, error)

    def present(self) -> frozenset[int] | None:
        """Return None: every client can be asked."""
        return None

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client, by its own calibration."""
        return self._worker.measured_costs(client)

    def evaluate(
        self, adapter: Adapter, *, final: bool = False, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter."""
        return self._worker.evaluate(adapter, final=final, clients=clients)

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self._worker.save_adapter(adapter, folder)

    def close(self) -> None:
        """Remove temporary files; the model ends with the object."""
        self._worker.close()
