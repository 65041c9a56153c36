"""Where client work runs: one small interface, in process or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from airtune.adapters.names import Adapter
from airtune.models.workload import StepTokens
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.worker import Evaluation, Federation

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

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        """Do the jobs; yield each outcome as it ends, in any order."""

    def evaluate(self, adapter: Adapter, *, final: bool) -> Evaluation:
        """Measure the full model with the adapter; `final` adds what is too slow each round."""

    def save_adapter(self, adapter: Adapter, folder: str) -> None:
        """Write the adapter as a folder that `PeftModel.from_pretrained` loads."""

    def close(self) -> None:
        """Let go of processes and memory."""
