"""The default engine, which keeps what it is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from airtune.engines.local import LocalEngine
from airtune.scenario import Scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.worker import Worker


class Watched(LocalEngine):
    """Keeps every job and outcome, in their order and by (round, client).

    Args:
        scenario: whose clients to work for.
        fails: the (round, client) that is answered with a failure.
    """

    def __init__(self, scenario: Scenario, fails: tuple[int, int] | None = None) -> None:
        super().__init__(scenario)
        self.jobs: list[ClientJob] = []
        self.outcomes: list[ClientUpdate | ClientFailure] = []
        self.job_at: dict[tuple[int, int], ClientJob] = {}
        self.update_at: dict[tuple[int, int], ClientUpdate] = {}
        self.measured: list[dict[str, Any]] = []
        """The arguments by name of every evaluation."""
        self._fails = fails

    @property
    def worker(self) -> Worker:
        return self._worker

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        for job in jobs:
            at = job.round, job.client
            self.jobs.append(job)
            self.job_at[at] = job
            if at == self._fails:
                outcome: ClientUpdate | ClientFailure = ClientFailure(job.client, "switched off")
            else:
                (outcome,) = super().train([job])
            self.outcomes.append(outcome)
            if isinstance(outcome, ClientUpdate):
                self.update_at[at] = outcome
            yield outcome

    def evaluate(self, *given: Any, **named: Any) -> Any:
        self.measured.append(named)
        return super().evaluate(*given, **named)
