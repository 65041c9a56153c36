"""Who takes part in a round of a run, and how much each of them weighs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airtune.channel import ChannelState
from airtune.models.affine import AffineCosts
from airtune.planning.cohorts import Cohort, DrawMemory, draw_cohort, whole_band_rate_bps
from airtune.planning.inputs import ClientLoad, Situation, cost_line, modes_of, nominal_load
from airtune.planning.round_plan import may_prune
from airtune.rounds.cell import Cell
from airtune.scenario import DeviceSection
from airtune.training.client import ClientUpdate
from airtune.units import FloatArray


def cohort_of_round(
    cell: Cell, round: int, elapsed_s: float, memory: DrawMemory, air: ChannelState
) -> Cohort | None:
    """Draw a round's cohort; None where every client takes part in every round.

    Args:
        cell: the run's.
        round: counted from 1.
        elapsed_s: the virtual clock at the end of the round before.
        memory: what the rule remembers.
        air: the round's channel, of all clients.

    Raises:
        RunError: too few clients are ever available again.
    """
    if not cell.scenario.participation.draws:
        return None
    return draw_cohort(
        cell.scenario,
        round=round,
        time_s=elapsed_s,
        rate_bps=whole_band_rate_bps(cell.scenario, air),
        examples=examples_of(cell),
        availability=cell.availability,
        present=cell.engine.present(),
        memory=memory,
    )


def examples_of(cell: Cell) -> FloatArray:
    """Return (K,) how many training examples each client of the population holds."""
    return np.array([client.examples for client in cell.federation.clients], dtype=np.float64)


def load_of(cell: Cell, round: int, client: int) -> ClientLoad:
    """Return what planning knows of one client's work in a round."""
    known = cell.federation.clients[client]
    curve, most_pruned = known.pruning_cost, known.most_pruned
    measured = cell.scenario.pruning.cost == "measured"
    if measured and cell.scenario.participation.draws and curve is None:
        curve, most_pruned = cell.engine.measured_costs(client)
    return ClientLoad(cell.engine.step_tokens(round, client), known.examples, curve, most_pruned)


def weight_of(cell: Cell, situation: Situation, update: ClientUpdate, success: float) -> float:
    """Return what an update weighs in the average.

    With `participation.weights = "inclusion"` it is (n_k/N)/(π_k·q_k): n_k of the N examples of
    all who were available, over the probabilities to be drawn and that the upload arrives. The
    weights then sum to 1 on average, and the merged change is scaled by their sum (Horvitz and
    Thompson, JASA 47, 1952).

    Args:
        cell: the run's.
        situation: the round's.
        update: a client's.
        success: q_k.
    """
    if cell.scenario.participation.weights == "examples":
        return float(update.examples)
    examples, drawn = examples_of(cell), situation.drawn
    if drawn is None:
        return update.examples / float(examples.sum()) / success
    inclusion = inclusion_of(situation, situation.cohort.index(update.client))
    assert inclusion is not None
    return update.examples / float(examples[drawn.available].sum()) / (inclusion * success)


def inclusion_of(situation: Situation, place: int) -> float | None:
    """Return the probability with which the cohort's client at a place was drawn, if known."""
    drawn = situation.drawn
    return None if drawn is None or drawn.inclusion is None else float(drawn.inclusion[place])


def may_be_cut(cell: Cell) -> list[bool]:
    """Return for each client whether a plan may prune it, or memory force a cut in some round.

    Memory is asked with the batches of all rounds; where it is not known who does which of them, or
    how many there are, with the largest that there can be: none is cut that was not counted.
    """
    scenario = cell.scenario
    everyone = range(len(cell.profiles))
    if may_prune(scenario) or scenario.pruning.min_pruning > 0:
        return [True for _ in everyone]
    doubtful = _by_largest_batches(cell)
    if scenario.participation.draws or not scenario.schedule.is_synchronous:
        return doubtful
    rounds = range(1, scenario.rounds + 1)
    return [
        doubt and any(_is_forced(cell, client, load_of(cell, n, client)) for n in rounds)
        for client, doubt in zip(everyone, doubtful, strict=True)
    ]


def costs_of(cell: Cell, client: int, load: ClientLoad) -> AffineCosts:
    """Return what a client's steps cost in its own mode, by its pruning rate."""
    (mode,) = modes_of(cell.scenario, (client,))
    return cost_line(cell.scenario, cell.federation.shape, load, mode)


def _by_largest_batches(cell: Cell) -> list[bool]:
    largest = nominal_load(cell.scenario, label_share=1.0)
    known: dict[DeviceSection, bool] = {}  # once a kind of device
    devices = cell.scenario.client_devices
    for client, device in enumerate(devices):
        if device not in known:
            known[device] = _is_forced(cell, client, largest)
    return [known[device] for device in devices]


def _is_forced(cell: Cell, client: int, load: ClientLoad) -> bool:
    return costs_of(cell, client, load).min_pruning(cell.profiles[client].memory_bytes) > 0


def queues_with(
    queues: Sequence[float], clients: Sequence[int], new: FloatArray
) -> tuple[float, ...]:
    """Return the queues of the population with those of a cohort changed."""
    after = np.array(queues)
    after[list(clients)] = new
    return tuple(after.tolist())
