"""A client's turn in rounds that are not synchronous: what it is told, does and is billed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from airtune.assignment import Assignment, Mode, PlannedTimes
from airtune.channel import ChannelState
from airtune.errors import InputError
from airtune.models.affine import AffineCosts
from airtune.models.devices import compute_s
from airtune.planning.broadcast import needed_bits
from airtune.planning.inputs import (
    ClientLoad,
    least_rate,
    modes_of,
)
from airtune.record import ClientRecord, TurnRecord
from airtune.record.schema import OK
from airtune.rounds.answers import status_of
from airtune.rounds.bills import Outcome, bill, energy_together, finite, what_binds, with_energy
from airtune.rounds.cell import Cell
from airtune.rounds.clock import Turn
from airtune.rounds.cohort import costs_of, load_of
from airtune.rounds.flight import Flight, Key
from airtune.training.client import ClientJob, ClientUpdate


@dataclass(frozen=True, eq=False)
class Task:
    """What one client is told for a turn, before it is known what band it will have."""

    client: int
    number: int
    mode: Mode
    load: ClientLoad
    costs: AffineCosts
    pruning: float
    """What the scenario or its memory demands, and no more."""
    downlink_bits: float
    downlink_rate_bps: float
    snr_hz: float
    efficiency: float | None
    received_snr_hz: float | None

    @property
    def downlink_s(self) -> float:
        """The adapter is sent to this client alone, at its own rate."""
        return self.downlink_bits / self.downlink_rate_bps

    def assignment(self, times: PlannedTimes | None, band_hz: float, rate_bps: float) -> Assignment:
        """Return it as what a client is told and billed by."""
        return Assignment(
            client=self.client,
            mode=self.mode,
            pruning=self.pruning,
            bandwidth_hz=band_hz,
            rate_bps=rate_bps,
            downlink_rate_bps=self.downlink_rate_bps,
            downlink_bits=self.downlink_bits,
            planned=times,
        )


def task_of(cell: Cell, client: int, number: int, air: ChannelState | None = None) -> Task:
    """Return what a client is told for its n-th turn: the draws of the n-th synchronous round.

    Args:
        cell: the run's.
        client: which one.
        number: n, counted from 1.
        air: the n-th round's channel, where it is known.

    Raises:
        InputError: the device's memory does not hold even the most pruned submodel.
    """
    scenario, shape = cell.scenario, cell.federation.shape
    air = cell.draw(cell, number) if air is None else air
    mode = modes_of(scenario, (client,))[0]
    load = load_of(cell, number, client)
    costs = costs_of(cell, client, load)
    pruning = least_rate(scenario, shape, costs, cell.profiles[client])
    if pruning > scenario.pruning.max_pruning:
        raise InputError(
            f"client {scenario.client_names[client]}: its memory does not hold the model even at "
            f"pruning.max_pruning = {scenario.pruning.max_pruning:g}; raise it, or give a device "
            "with more memory"
        )
    efficiency = float(air.max_spectral_efficiency[client])
    return Task(
        client=client,
        number=number,
        mode=mode,
        load=load,
        costs=costs,
        pruning=pruning,
        downlink_bits=float(needed_bits(scenario, shape, [mode], 0.0, 0)[0][0]),
        downlink_rate_bps=float(air.downlink_rate_bps[client]),
        snr_hz=float(air.snr_hz[client]),
        efficiency=efficiency if np.isfinite(efficiency) else None,
        received_snr_hz=air.received_snr_hz(client),
    )


def outcomes_of(
    cell: Cell, flight: Flight, turns: Iterable[tuple[Task, int]]
) -> dict[Key, Outcome]:
    """Have clients do their turns: each from the adapter that it began with.

    Args:
        cell: the run's.
        flight: the adapters by the merges made before.
        turns: at most one a client: its task, and the merges made before it began.
    """
    tasks = {task.client: (task, merges) for task, merges in turns}

    def jobs() -> Iterator[ClientJob]:
        for client, (task, merges) in tasks.items():
            cell.observer.client_started(merges + 1, cell.scenario.client_names[client])
            yield ClientJob(
                round=task.number,
                assignment=task.assignment(None, 0.0, 0.0),
                adapter=flight.adapters[merges],
                rate_round=merges + 1,
            )

    found = {outcome.client: outcome for outcome in cell.engine.train(jobs())}
    return {(k, task.number): found[k] for k, (task, _) in tasks.items()}


def begin_turns(
    cell: Cell, flight: Flight, clients: Sequence[int], merges: int, now_s: float
) -> Flight:
    """Return the flight after these clients have begun a turn from the newest adapter, in it."""
    if not clients:
        return flight
    airs: dict[int, ChannelState] = {}
    tasks = []
    for client in clients:
        number = flight.numbers.get(client, 0) + 1
        if number not in airs:
            airs[number] = cell.draw(cell, number)
        tasks.append(task_of(cell, client, number, airs[number]))
    outcomes = outcomes_of(cell, flight, [(task, merges) for task in tasks])
    turns = []
    for task in tasks:
        outcome, profile = outcomes[task.client, task.number], cell.profiles[task.client]
        flops, bits = planned_flops(task), 0.0
        if isinstance(outcome, ClientUpdate):
            flops, bits = outcome.flops, outcome.uplink_bits
        status = status_of(cell, outcome, task.mode.rank, flight.adapters[merges])
        turns.append(
            Turn(
                client=task.client,
                number=task.number,
                start_round=merges,
                started_s=now_s,
                downlink_s=task.downlink_s,
                compute_s=compute_s(flops, profile),
                uplink_bits=bits,
                snr_hz=task.snr_hz,
                efficiency=task.efficiency,
                can_be_merged=status == OK,
            )
        )
    return replace(
        flight,
        turns=(*flight.turns, *turns),
        numbers=flight.numbers | {task.client: task.number for task in tasks},
        outcomes=flight.outcomes | outcomes,
    )


def planned_flops(task: Task) -> float:
    """Return what its work should take, where what it took is not known."""
    return task.costs.flops(task.pruning)


def turn_bill(
    cell: Cell, task: Task, turn: Turn, outcome: Outcome, status: str, over_s: float
) -> ClientRecord:
    """Bill one turn, with the mean band and rate of its upload.

    Args:
        cell: the run's.
        task: what it was told.
        turn: when it did what; it has ended.
        outcome: what came of it.
        status: as recorded.
        over_s: until when its device is on: its end, or that of the round it waits for.
    """
    assert turn.ended_s is not None
    upload_s = turn.ended_s - turn.ready_s
    times = PlannedTimes(turn.downlink_s, turn.compute_s, upload_s, over_s - turn.started_s)
    sends = upload_s > 0
    assigned = task.assignment(
        times,
        turn.band_hz_s / upload_s if sends else 0.0,
        turn.uplink_bits / upload_s if sends else 0.0,
    )
    device, profile = cell.scenario.client_devices[turn.client], cell.profiles[turn.client]
    row = bill(
        cell.scenario.client_names[turn.client],
        profile,
        task.load,
        assigned,
        outcome,
        status,
        binds=what_binds(assigned, task.pruning, 0.0, cell.scenario.pruning.min_pruning),
        snr_hz=task.received_snr_hz,
    )
    return with_energy(row, device, profile, times.round_s)


def turn_record(
    cell: Cell, turn: Turn, status: str, uplink_bits: float, merges: int, share: float
) -> TurnRecord:
    """Return a merged turn's times on the virtual clock."""
    assert turn.ended_s is not None
    return TurnRecord(
        name=cell.scenario.client_names[turn.client],
        status=status,
        turn=turn.number,
        start_round=turn.start_round,
        staleness=merges - turn.start_round,
        share=share if status == OK else 0.0,
        started_s=turn.started_s,
        received_s=turn.started_s + turn.downlink_s,
        computed_s=turn.ready_s,
        ended_s=turn.ended_s,
        uplink_bits=uplink_bits,
    )


def together(rows: Sequence[ClientRecord]) -> ClientRecord:
    """Return one client's turns of a merge as one row: sums, and means by the time of sending."""
    if len(rows) == 1:
        return rows[0]
    upload_s = sum(row.upload_s for row in rows)
    sums = {
        key: sum(getattr(row, key) for row in rows)
        for key in ("downlink_s", "compute_s", "total_s", "uplink_bits", "downlink_bits", "flops")
    }
    label_tokens = sum(row.label_tokens for row in rows)
    drawn = ("compute_j", "transmit_j", "receive_j", "wait_j")
    joules: dict[str, float | None] = dict.fromkeys(drawn)
    if energy_together(rows) is not None:
        joules = {key: sum(getattr(row, key) for row in rows) for key in drawn}
    first = next((row for row in rows if row.status == OK), rows[0])
    losses = [row.train_loss for row in rows if row.train_loss is not None]
    values = asdict(first) | sums | joules
    values |= {
        "upload_s": upload_s,
        "label_tokens": label_tokens,
        "energy_j": energy_together(rows),
        "train_loss": finite(float(np.mean(losses))) if losses else None,
    }
    if upload_s > 0:
        mean = sum(row.bandwidth_hz * row.upload_s for row in rows) / upload_s
        values |= {"bandwidth_hz": mean, "rate_bps": sums["uplink_bits"] / upload_s}
    return ClientRecord(**values)
