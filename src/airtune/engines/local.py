"""The default engine: one client after the other, in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from airtune.client import Adapter, ClientJob, ClientUpdate
from airtune.engines import ClientFailure
from airtune.scenario import Scenario
from airtune.worker import Evaluation, Setting, Worker
from airtune.workload import StepTokens


class LocalEngine:
    """Runs every client in this process; implements `airtune.engines.Engine`."""

    def __init__(self, scenario: Scenario) -> None:
        self._worker = Worker(scenario)

    def setting(self) -> Setting:
        """Describe clients, data and model."""
        return self._worker.setting

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
            except (RuntimeError, ArithmeticError) as error:
                first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
                yield ClientFailure(job.client, f"{type(error).__name__}: {first_line}")

    def evaluate(self, adapter: Adapter, *, final: bool = False) -> Evaluation:
        """Measure the full model with the adapter."""
        return self._worker.evaluate(adapter, final=final)

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter in PEFT's format."""
        self._worker.save_adapter(adapter, folder)

    def close(self) -> None:
        """Nothing to let go of: the model goes with the object."""
