"""The cohort of a round: which clients of the population take part, drawn before the broadcast.

A draw has a random stream of its own, named by the round, and looks at nothing that a planning
method decides: every method sees the same cohorts for a seed, as long as the same clients are
available. (Availability is on the virtual clock, which runs faster under a better method.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from airtune.channel import ChannelState, rate_of_band
from airtune.errors import InputError, RunError
from airtune.planning.availability import Availability, read_availability
from airtune.randomness import generator
from airtune.scenario import Scenario
from airtune.scenario.participation import BY_CHANNEL
from airtune.units import FloatArray

LEAST_MEAN_BPS = 1e-100
"""Least divisor of a rate, bit/s: the mean of a client that is not served for hundreds of windows
of rounds goes towards 0."""


@dataclass(frozen=True)
class DrawMemory:
    """What a rule remembers from round to round; part of the state that is resumed from."""

    next: int = 0
    """`round-robin`: where the next cohort begins in the order of turns."""
    mean_rate_bps: tuple[float, ...] = ()
    """`proportional-fair`: what each client was served with on average, bit/s."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """Who takes part in a round.

    Attributes:
        clients: m places in the scenario's order of clients, ascending.
        available: (K,) who could have been drawn.
        waited_s: s on the virtual clock until enough were available.
        inclusion: (m,) probability of each to be drawn; None where the rule gives none.
        memory: what the rule remembers afterwards.
    """

    clients: tuple[int, ...]
    available: NDArray[np.bool_]
    waited_s: float = 0.0
    inclusion: FloatArray | None = None
    memory: DrawMemory = field(default_factory=DrawMemory)


def availability_of(scenario: Scenario) -> Availability | None:
    """Read the scenario's availability file, where it names one.

    Raises:
        InputError: it is malformed, or a cohort is waited for that is never there.
    """
    section = scenario.participation
    if section.availability is None:
        return None
    found = read_availability(section.availability, scenario.client_names)
    wanted = 1 if section.cohort is None else scenario.cohort_size
    if section.too_few == "wait" and found.most() < wanted:
        raise InputError(
            f"participation.cohort = {section.cohort}: at most {found.most()} of the "
            f"{found.clients:,} clients are available at once in {found.path}, and a cohort is "
            f"{wanted}: lower it, or set participation.too_few = 'fewer'"
        )
    return found


def remembers(scenario: Scenario) -> bool:
    """Return whether a cohort depends on the cohorts before it."""
    return scenario.participation.cohort_by in ("round-robin", "proportional-fair")


def whole_band_rate_bps(scenario: Scenario, air: ChannelState) -> FloatArray:
    """Return (K,) what each client could send over the whole uplink, bit/s."""
    return rate_of_band(scenario.cell.uplink_bandwidth_hz, air.snr_hz, air.max_spectral_efficiency)


def draw_cohort(
    scenario: Scenario,
    *,
    round: int,
    time_s: float,
    rate_bps: FloatArray,
    examples: FloatArray,
    availability: Availability | None,
    memory: DrawMemory,
    present: frozenset[int] | None = None,
) -> Cohort:
    """Draw the cohort of one round.

    Args:
        scenario: seed, and how cohorts are drawn.
        round: counted from 1.
        time_s: the virtual clock at the end of the round before.
        rate_bps: (K,) what each client could send over the whole uplink in this round.
        examples: (K,) what each client holds.
        availability: who is there when; None: everyone always.
        memory: what the rule remembers.
        present: real devices that are connected; None: in simulation.

    Raises:
        RunError: too few clients are ever available again.
    """
    section, clients = scenario.participation, len(rate_bps)
    there, waited_s = _available(scenario, clients, time_s, availability)
    if present:  # with no device connected, those drawn are found to be away
        there = there & np.isin(np.arange(clients), list(present))
    if section.cohort is None:
        chosen = np.flatnonzero(there)
        return Cohort(_places(chosen), there, waited_s, np.ones(len(chosen)), memory)
    size = min(scenario.cohort_size, int(there.sum()))
    rng = generator(scenario.seed, "cohort", round=round)
    # A number for each client, available or not: one that is away changes no other's.
    keys = rng.random(clients)
    start = float(rng.random())
    if section.cohort_by == "round-robin":
        order = generator(scenario.seed, "cohort-order").permutation(clients)
        chosen, memory = _in_turn(order, there, size, memory)
        share = size / clients if there.all() else None
        inclusion = None if share is None else np.full(size, share)
        return Cohort(_places(chosen), there, waited_s, inclusion, memory)
    if section.cohort_by in BY_CHANNEL:
        score = rate_bps
        if section.cohort_by == "proportional-fair":
            mean = np.array(memory.mean_rate_bps) if memory.mean_rate_bps else rate_bps
            score = rate_bps / np.maximum(mean, LEAST_MEAN_BPS)
        chosen = _best(score, keys, there, size)
        if section.cohort_by == "proportional-fair":
            memory = _served(memory, rate_bps, chosen, window=clients / size)
        return Cohort(_places(chosen), there, waited_s, None, memory)
    if section.cohort_by == "data-size":
        probability = inclusion_by_size(np.where(there, examples, 0.0), size)
        chosen = systematic(probability, keys, start)
        return Cohort(_places(chosen), there, waited_s, probability[np.sort(chosen)], memory)
    chosen = _best(np.zeros(clients), keys, there, size)
    share = size / int(there.sum())
    return Cohort(_places(chosen), there, waited_s, np.full(size, share), memory)


def cohort_before_run(
    scenario: Scenario, round: int, air_of: Callable[[int], ChannelState]
) -> tuple[Cohort | None, ChannelState]:
    """Return a round's cohort as known before any data is loaded, and all clients' channel.

    Clients count as equally large, and the virtual clock stands at 0. The cohort is None where
    every client takes part.

    Args:
        scenario: of the run.
        round: counted from 1.
        air_of: draws a round's channel of all clients.
    """
    if not scenario.participation.draws:
        return None, air_of(round)
    availability, memory = availability_of(scenario), DrawMemory()
    first = 1 if remembers(scenario) else round
    for number in range(first, round + 1):
        air = air_of(number)
        drawn = draw_cohort(
            scenario,
            round=number,
            time_s=0.0,
            rate_bps=whole_band_rate_bps(scenario, air),
            examples=np.ones(len(air.snr_hz)),
            availability=availability,
            memory=memory,
        )
        memory = drawn.memory
    return drawn, air


def inclusion_by_size(sizes: FloatArray, count: int) -> FloatArray:
    """Return (K,) the probabilities in proportion to size that sum to `count`, none above 1.

    π_k = min(1, c·n_k): who would be above 1 is always drawn, and the others share what is left.

    Args:
        sizes: (K,) n_k >= 0, at least `count` of them above 0.
        count: of clients to draw.
    """
    probability = np.zeros(len(sizes))
    certain = np.zeros(len(sizes), dtype=bool)
    while True:
        rest = np.where(certain, 0.0, sizes)
        total = rest.sum()
        if total > 0:
            probability = (count - certain.sum()) * rest / total
        probability = np.where(certain, 1.0, probability)
        above = ~certain & (probability >= 1.0)
        if not above.any():
            return probability
        certain |= above


def systematic(probability: FloatArray, keys: FloatArray, start: float) -> NDArray[np.intp]:
    """Draw as many clients as the probabilities sum to, each with exactly its own.

    Systematic sampling in random order (Madow, Annals of Mathematical Statistics 20, 1949): the
    probabilities are laid end to end, and the clients in whose part `start`, `start + 1`, … fall
    are drawn.

    Args:
        probability: (K,) at most 1 each; their sum is whole.
        keys: (K,) random numbers, which order the clients.
        start: in [0, 1).
    """
    count = round(float(probability.sum()))
    order = np.argsort(keys, kind="stable")
    order = order[probability[order] > 0]
    ends = np.cumsum(probability[order])
    ends[-1] = count  # rounding must not lose the last point
    return order[np.searchsorted(ends, start + np.arange(count), side="right")]


def _places(chosen: NDArray[np.intp]) -> tuple[int, ...]:
    return tuple(np.sort(chosen).tolist())


def _available(
    scenario: Scenario, clients: int, time_s: float, availability: Availability | None
) -> tuple[NDArray[np.bool_], float]:
    """Return who is available, and how long the round waits for enough of them."""
    if availability is None:
        return np.ones(clients, dtype=bool), 0.0
    section = scenario.participation
    waits = section.too_few == "wait" and section.cohort is not None
    wanted = scenario.cohort_size if waits else 1
    at_s = availability.first_with(wanted, time_s)
    if at_s is None:
        there = int(availability.at(time_s).sum())
        raise RunError(
            f"{availability.path}: {there} clients are available at {time_s:.6g} s on the virtual "
            f"clock, and never again {wanted} at once; give later spans, a smaller "
            "participation.cohort or fewer rounds"
        )
    return availability.at(at_s), at_s - time_s


def _best(
    score: FloatArray, keys: FloatArray, there: NDArray[np.bool_], size: int
) -> NDArray[np.intp]:
    """Return the `size` available clients of the highest score, the smallest key first in ties."""
    order = np.lexsort((keys, -score, ~there))
    return order[:size]


def _in_turn(
    order: NDArray[np.intp], there: NDArray[np.bool_], size: int, memory: DrawMemory
) -> tuple[NDArray[np.intp], DrawMemory]:
    """Return the next `size` available clients in the order, from where the last turn ended."""
    places = (memory.next + np.arange(len(order))) % len(order)
    found = places[there[order[places]]][:size]
    return order[found], replace(memory, next=int(found[-1] + 1) % len(order))


def _served(
    memory: DrawMemory, rate_bps: FloatArray, chosen: NDArray[np.intp], *, window: float
) -> DrawMemory:
    """Return the memory with each client's mean rate moved on: T ← (1 − 1/w)·T + (1/w)·r·[served].

    It starts from the client's own rate in the first round over w, as if each had been served
    its equal share.
    """
    mean = np.array(memory.mean_rate_bps) if memory.mean_rate_bps else rate_bps / window
    served = np.zeros(len(rate_bps))
    served[chosen] = rate_bps[chosen]
    mean = mean + (served - mean) / window
    return replace(memory, mean_rate_bps=tuple(mean.tolist()))
