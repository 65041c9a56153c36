"""What may watch a run: the events of the round loop, any may be ignored."""

from __future__ import annotations

from airtune.record import RoundRecord


class Observer:
    """Watches a run without a word; `airtune.cli.progress` has ones that print."""

    def preparing(self, what: str) -> None:
        """Something that takes a while is being prepared."""

    def noticed(self, what: str) -> None:
        """Something that the user should know: what was lost, restored or is done again."""
        self.preparing(what)

    def started(self, initial_loss: float | None) -> None:
        """The first round is about to begin; the loss is the untrained adapter's."""

    def client_started(self, round: int, client: str) -> None:
        """A client is given its work."""

    def round_ended(self, record: RoundRecord) -> None:
        """A round was merged, evaluated and recorded."""
