"""From what a client answered to what is merged, and what the merge achieves."""

from __future__ import annotations

from collections.abc import Sequence

from airtune.adapters.names import Adapter, padded, rank_of
from airtune.adapters.slices import scatter_adapter, submodel_shapes
from airtune.merging.functions import Contribution, fault_of
from airtune.merging.rules import rule_of
from airtune.record.schema import OK
from airtune.rounds.bills import Outcome
from airtune.rounds.broadcast import onto_server
from airtune.rounds.cell import Cell
from airtune.rounds.state import State
from airtune.training.client import ClientFailure, ClientUpdate
from airtune.training.worker import Evaluation


def status_of(cell: Cell, outcome: Outcome, rank: int, start: Adapter) -> str:
    """Return what the record says of an answer: "ok", or why it cannot be merged.

    Args:
        cell: the run's.
        outcome: what came of the client's work.
        rank: of its adapter.
        start: the full adapter that it began with.
    """
    if isinstance(outcome, ClientFailure):
        return f"failed: {outcome.reason}"
    # What a client that restarts begins with is a stack of all merges: no bound on its own rank.
    held = rank if rule_of(cell.scenario).restarts else min(rank, rank_of(start))
    shapes = submodel_shapes(outcome.structure, cell.federation.shape, held)
    expected: dict[str, tuple[int, ...]] = {**shapes}
    return fault_of(outcome.adapter, expected, outcome.train_loss) or OK


def contribution_of(
    cell: Cell,
    server: Adapter,
    update: ClientUpdate,
    steps: int,
    weight: float,
    reached: Adapter | None = None,
) -> Contribution:
    """Return an update in the server's shapes.

    Args:
        cell: the run's.
        server: the adapter whose rank it is brought to.
        update: a sound one.
        steps: local steps done.
        weight: what it weighs in the average.
        reached: the adapter that the client began from, where that is not the server's own.
    """
    values, held = scatter_adapter(update.adapter, update.structure, cell.federation.shape)
    if reached is not None:
        values = onto_server(server, reached, values, held)
    # Where clients restart, their rank is their own; otherwise the server's, zero-padded.
    if not rule_of(cell.scenario).restarts:
        rank = rank_of(server)
        values, held = padded(values, rank), padded(held, rank)
    return Contribution(values, held, weight=weight, steps=steps)


def evaluation_after(cell: Cell, after: State, cohort: Sequence[int]) -> Evaluation | None:
    """Measure where the scenario asks for it: every n-th round, and the last one."""
    scenario = cell.scenario
    last = after.is_last(scenario)
    if not last and after.round % scenario.evaluation.every_rounds:
        return None
    return measured(cell, after.adapter, cohort, final=last)


def measured(cell: Cell, adapter: Adapter, cohort: Sequence[int], *, final: bool) -> Evaluation:
    """Measure; of the clients' own text that of the cohort, where not everyone takes part."""
    if not cell.scenario.participation.draws:
        return cell.engine.evaluate(adapter, final=final)
    return cell.engine.evaluate(adapter, final=final, clients=cohort)
