"""From a scenario, a round's channel and counted work to the round's planning problem.

No torch: `airtune plan` on a scenario comes through here with nominal batch sizes, the round
loop with the sizes of the very batches that the clients will train on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from airtune import channel, planning
from airtune.assignment import Mode
from airtune.channel import ChannelState, numerology
from airtune.channel.outage import backed_off
from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.models.affine import AffineCosts, affine_coefficients
from airtune.models.devices import DeviceProfile, profile_of
from airtune.models.energy import budgets_of
from airtune.models.workload import KeptSizes, ModelShape, StepTokens, largest_step
from airtune.planning import Plan, PlanningProblem
from airtune.planning.broadcast import Link, link_of
from airtune.planning.cohorts import Cohort, cohort_before_run
from airtune.planning.floor import first_queues
from airtune.planning.known_shape import shape_of_model
from airtune.planning.scheduling import check_has_rounds
from airtune.randomness import generator
from airtune.scenario import Scenario, TrainingSection

FloatArray = NDArray[np.float64]
_T = TypeVar("_T")

NOMINAL_LABEL_SHARE = 0.5
"""Share of the tokens that are answer tokens, where no data has been read yet."""
BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ClientLoad:
    """What planning knows of one client's work in a round."""

    steps: tuple[StepTokens, ...]
    examples: int
    pruning_cost: tuple[tuple[float, float], ...] | None = None
    most_pruned: KeptSizes | None = None
    """Its submodel at pruning.max_pruning, where known."""


@dataclass(frozen=True, eq=False)
class Situation:
    """What is known when a round is planned; K is the number of clients in its cohort.

    Attributes:
        round: counted from 1.
        shape: the model's.
        cohort: K places in the scenario's order of clients.
        profiles: K devices, at the speed that they have kept.
        loads: K clients' steps of this round and their weights.
        modes: K clients' modes as the scenario has them.
        link: the K clients' channel and the broadcast.
        problem: the planning problem in which all K take part.
        queues: (K,) what is still owed to each client under `participation.floor`; zeros without.
        contributed: (K,) what each client contributed in a round so far, on average, where
            `participation.fairness` looks at it; ones without.
        drawn: how the cohort came about; None where every client is in it.
        air: the K clients' channel before the margin that the plan keeps; None: as in `link`.
    """

    round: int
    shape: ModelShape
    cohort: tuple[int, ...]
    profiles: tuple[DeviceProfile, ...]
    loads: tuple[ClientLoad, ...]
    modes: tuple[Mode, ...]
    link: Link
    problem: PlanningProblem
    queues: FloatArray
    contributed: FloatArray
    drawn: Cohort | None = None
    air: ChannelState | None = None


def modes_of(scenario: Scenario, cohort: Sequence[int] | None = None) -> tuple[Mode, ...]:
    """Return each client's mode as the scenario has it: all of its steps, at its device's rank.

    Args:
        scenario: of the run.
        cohort: K places in the scenario's order of clients; None: all of them.
    """
    section = scenario.aggregation
    freezes_a = rule_of(scenario).freezes_a
    return tuple(
        Mode(
            local_steps=scenario.training.local_steps,
            rank=rank,
            bits_per_value=section.uplink_bits_per_value,
            bits_per_scale=section.uplink_bits_per_scale,
            freezes_a=freezes_a,
            control_variates=scenario.training.scaffold,
        )
        for rank in _those(scenario.client_ranks, cohort)
    )


def _those(values: Sequence[_T], cohort: Sequence[int] | None) -> Sequence[_T]:
    return values if cohort is None else [values[client] for client in cohort]


def problem_of_round(
    scenario: Scenario,
    shape: ModelShape,
    profiles: Sequence[DeviceProfile],
    loads: Sequence[ClientLoad],
    modes: Sequence[Mode],
    link: Link,
    cohort: Sequence[int] | None = None,
) -> PlanningProblem:
    """Return the planning problem of one round.

    Args:
        scenario: bandwidth, κ, bounds on pruning, the model's precision.
        shape: the model's.
        profiles: one a client of the cohort, in its order, as all that follows.
        loads: each client's local steps and weight.
        modes: how much each client works and sends.
        link: the round's channel and broadcast; everyone listens.
        cohort: K places in the scenario's order of clients; None: all of them.

    Raises:
        InputError: a device's memory does not hold even the most pruned submodel.
    """
    coefficients = [
        cost_line(scenario, shape, load, mode) for load, mode in zip(loads, modes, strict=True)
    ]
    speed = np.array([profile.effective_flops for profile in profiles])
    names = tuple(_those(scenario.client_names, cohort))
    least = least_pruning(scenario, shape, coefficients, profiles, names)
    costs = [load.pruning_cost for load in loads]
    return PlanningProblem(
        bandwidth_hz=scenario.cell.uplink_bandwidth_hz,
        kappa=scenario.planning.kappa,
        names=names,
        weight=np.array([load.examples for load in loads], dtype=np.float64),
        snr_hz=link.air.snr_hz,
        downlink_s=link.needed_s(link.everyone),
        compute_fixed_s=np.array([c.flops_fixed for c in coefficients]) / speed,
        compute_full_s=np.array([c.flops_full for c in coefficients]) / speed,
        payload_fixed_bits=np.array([c.payload_fixed_bits for c in coefficients]),
        payload_full_bits=np.array([c.payload_full_bits for c in coefficients]),
        min_pruning=np.array(least),
        max_pruning=np.full(len(profiles), scenario.pruning.max_pruning),
        max_spectral_efficiency=link.air.max_spectral_efficiency,
        pruning_cost=None
        if all(cost is None for cost in costs)
        else tuple(None if cost is None else np.array(cost) for cost in costs),
        max_pruning_loss=scenario.planning.max_pruning_loss,
        **budgets_of(_those(scenario.client_devices, cohort), profiles),
    )


def cost_line(scenario: Scenario, shape: ModelShape, load: ClientLoad, mode: Mode) -> AffineCosts:
    """Return what a client's steps cost in a mode, as a line over its pruning rate.

    The line ends at the client's own submodel at `pruning.max_pruning` where that is known, else
    at one that is cut to the same share everywhere.

    Args:
        scenario: the weights' precision, the largest pruning rate.
        shape: the model's.
        load: the client's steps.
        mode: how much it works and sends.
    """
    most_pruned = load.most_pruned
    return affine_coefficients(
        shape,
        load.steps,
        mode,
        bytes_per_weight=BYTES_PER_WEIGHT[scenario.model.dtype],
        quantize=scenario.model.quantize,
        max_pruning=scenario.pruning.max_pruning,
        sizes_at=None if most_pruned is None else lambda rate: most_pruned,
    )


def may_sit_out(scenario: Scenario) -> bool:
    """Return whether the plan may leave a client out of any round."""
    every_round = scenario.participation.rule != "in-turn"
    return "absence" in scenario.planning.turned and every_round


def least_rate(
    scenario: Scenario, shape: ModelShape, cost: AffineCosts, profile: DeviceProfile
) -> float:
    """Return a client's smallest pruning rate; above 1 where its memory holds no submodel.

    A submodel has whole units and comes to the rate that is nearest. So that it is not one below
    what memory holds, half of the largest unit is added, up to `max_pruning`.
    """
    forced, most = cost.min_pruning(profile.memory_bytes), scenario.pruning.max_pruning
    if 0 < forced < most:
        forced = min(most, forced + largest_step(shape, scenario.pruning.units) / 2)
    return max(scenario.pruning.min_pruning, forced)


def least_pruning(
    scenario: Scenario,
    shape: ModelShape,
    costs: Sequence[AffineCosts],
    profiles: Sequence[DeviceProfile],
    names: Sequence[str],
) -> list[float]:
    """Return each client's smallest pruning rate: the scenario's, or what its memory can hold.

    A client that may sit out and does not hold even the most pruned submodel has none that it can
    hold; it gets the largest rate, and no plan can give it work.

    Raises:
        InputError: a device does not hold even the most pruned submodel, and has to take part.
    """
    most = scenario.pruning.max_pruning
    rates = [
        least_rate(scenario, shape, cost, profile)
        for cost, profile in zip(costs, profiles, strict=True)
    ]
    if may_sit_out(scenario):
        return [min(rate, most) for rate in rates]
    for name, rate, profile in zip(names, rates, profiles, strict=True):
        if rate > most:
            raise InputError(
                f"client {name}: its memory of {profile.memory_bytes / 1e9:g} GB does not hold "
                f"the model even at pruning.max_pruning = {most:g}; raise it, or give a device "
                "with more memory"
            )
    return rates


def nominal_load(scenario: Scenario, label_share: float = NOMINAL_LABEL_SHARE) -> ClientLoad:
    """Return a client's work before any data is read: full batches, half of them answers.

    Args:
        scenario: of the run.
        label_share: another share of answers.
    """
    steps = full_steps(scenario.training, scenario.task.max_tokens, label_share)
    return ClientLoad(steps=steps, examples=1)


def full_steps(
    training: TrainingSection, max_tokens: int, label_share: float = NOMINAL_LABEL_SHARE
) -> tuple[StepTokens, ...]:
    """Return a round's steps as full batches of the longest texts, with a share of answers."""
    rows = training.batch_size
    full = StepTokens(rows, max_tokens, int(rows * max_tokens * label_share))
    return (full,) * training.local_steps


def situation_of_scenario(scenario: Scenario, round: int = 1) -> Situation:
    """Return what is known of a scenario's round before any data or model is loaded.

    The channel is the one that the run will draw for `round`. Batches are taken as full
    (task.max_tokens), half of their tokens as answers, the clients as equally large, and all of
    them as having heard the round before: what can be known from the file alone. The cohort is
    drawn with the virtual clock at 0.
    """
    check_has_rounds(scenario)
    load = nominal_load(scenario)
    devices = scenario.client_devices
    placement = channel.place(scenario.cell, devices, generator(scenario.seed, "placement"))

    def air_of(number: int) -> ChannelState:
        rng = generator(scenario.seed, "fading", round=number)
        return channel.draw(scenario.cell, devices, placement, rng, round=number)

    drawn, air = cohort_before_run(scenario, round, air_of)
    cohort = tuple(range(len(devices))) if drawn is None else drawn.clients
    known = air if drawn is None else air.of(cohort)
    shape, modes = shape_of_model(scenario), modes_of(scenario, cohort)
    profiles = tuple(profile_of(devices[client]) for client in cohort)
    loads = (load,) * len(cohort)
    held_ranks = _those(scenario.client_ranks, cohort) if round > 1 else ()
    link = link_of(scenario, shape, modes, backed_off(scenario.cell, known), held_ranks=held_ranks)
    problem = problem_of_round(scenario, shape, profiles, loads, modes, link, cohort)
    floor = scenario.participation.floor
    # A run's first round begins with these; what later ones owe is not known.
    queues = first_queues(len(devices), floor, generator(scenario.seed, "floor"))[list(cohort)]
    even = np.ones(len(cohort))
    return Situation(
        round, shape, cohort, profiles, loads, modes, link, problem, queues, even, drawn, known
    )


def problem_of_scenario(scenario: Scenario, round: int = 1) -> PlanningProblem:
    """Return a scenario's planning problem before any data or model is loaded."""
    return situation_of_scenario(scenario, round).problem


def plan_of_round(
    scenario: Scenario,
    problem: PlanningProblem,
    round: int,
    *,
    method: str | None = None,
    bound: bool = True,
) -> Plan:
    """Plan one round as the scenario asks: its method, tolerance and resource blocks.

    Args:
        scenario: of the run.
        problem: the round's, or another one in its place.
        round: counted from 1.
        method: in place of the scenario's.
        bound: False skips the lower bound where the method itself gives none.
    """
    spacing_hz = scenario.cell.subcarrier_spacing_hz
    whole_blocks: dict[str, Any] = {}
    if spacing_hz is not None:
        whole_blocks = {
            "block_hz": numerology.block_hz(spacing_hz),
            "blocks": numerology.resource_blocks(scenario.cell.uplink_bandwidth_hz, spacing_hz),
        }
    return planning.plan(
        problem,
        method or scenario.planning.method,
        bound=bound,
        tolerance=scenario.planning.tolerance,
        rng=generator(scenario.seed, "random-plan", round=round),
        **whole_blocks,
    )
