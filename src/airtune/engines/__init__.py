"""Where client work runs: one small interface, in process or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from airtune.adapters.names import Adapter
from airtune.models.workload import StepTokens
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.worker import Evaluation, Federation, MeasuredCosts

__all__ = ["ClientFailure", "Engine"]


class Engine(Protocol):
    """What the round loop asks of whatever does the clients' work.

    The same scenario gives the same answers whichever engine it is (on the CPU).
    """

    def federation(self) -> Federation:
        """Describe clients, data and model: what planning has to know before the first round."""

    def initial_adapter(self) -> Adapter:
        """Return the adapter that the first round starts from."""

    def step_tokens(self, round: int, client: int) -> tuple[StepTokens, ...]:
        """Return the size of each local step that a client will do in a round."""

    def present(self) -> frozenset[int] | None:
        """Return the clients that can be asked now; None: all, as in simulation."""

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs; yield each outcome as it ends, in any order."""

    def measured_costs(self, client: int) -> MeasuredCosts:
        """Return what pruning costs a client, by its own calibration; asked of a cohort's only."""

    def evaluate(
        self, adapter: Adapter, *, final: bool, clients: Sequence[int] | None = None
    ) -> Evaluation:
        """Measure the full model with the adapter; `final` adds what is too slow each round.

        `clients`: whose own held-out text is measured; None: that of all.
        """

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter as a folder that `PeftModel.from_pretrained` loads."""

    def close(self) -> None:
        """Let go of processes and memory."""
