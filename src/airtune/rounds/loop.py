"""The round loop: plan, fine-tune, merge, measure, on a virtual clock.

A round is synchronous. Its length on the virtual clock is counted, not timed: each client's
realised FLOPs over its device's speed, its realised bits over the rate of its band. What the
machine that simulates it needed is recorded apart, as `wall_s`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from airtune import channel, planning
from airtune.adapters.names import Adapter, leading, padded, rank_of
from airtune.adapters.slices import gather_adapter, scatter_adapter
from airtune.channel import Placement
from airtune.engines import ClientFailure, Engine
from airtune.engines.local import LocalEngine
from airtune.errors import InputError, RunError
from airtune.merging.functions import RULES, Contribution, fault_of, normalised
from airtune.merging.rules import rule_of
from airtune.models.devices import DeviceProfile, profile_of
from airtune.planning import METHODS, Plan, PlanningProblem, fitted_kappa
from airtune.planning.inputs import ClientLoad, Link, link_of, problem_of_round
from airtune.planning.participation import Decision, decision_of_round
from airtune.randomness import generator
from airtune.record import Record, RoundRecord, RunDirectory, read_record
from airtune.rounds.ledger import (
    Outcome,
    SatOut,
    State,
    bill,
    description,
    finite,
    kept_speed,
    packed,
    restored,
    speeds_after,
)
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, ClientUpdate, Planned
from airtune.training.worker import Evaluation, Setting


@dataclass(frozen=True)
class Run:
    """What stays the same over the rounds of a run."""

    scenario: Scenario
    setting: Setting
    profiles: tuple[DeviceProfile, ...]
    placement: Placement
    engine: Engine
    watch: Observer


def run(
    scenario: Scenario,
    *,
    out: str | Path,
    engine: Engine | Callable[[Scenario], Engine] = LocalEngine,
    resume: bool = False,
    replace: bool = False,
    observer: Observer | None = None,
) -> Record:
    """Fine-tune over the simulated cell and leave record, adapter and checkpoints in `out`.

    Args:
        scenario: what to run.
        out: the run directory.
        engine: who does the clients' work: an engine, which stays open, or what makes one,
            which is closed at the end. Default: this process.
        resume: go on from the last usable checkpoint in `out`.
        replace: throw away the run that `out` holds.
        observer: told of progress.

    Returns:
        The record, as `read_record(out)` reads it.

    Raises:
        InputError: the scenario cannot be run, or `out` cannot be written as asked.
        RunError: the run began and could not go on; what was recorded stays.
    """
    watch = observer or Observer()
    profiles = _checked_profiles(scenario)
    values, method = scenario.model_dump(mode="json"), scenario.planning.method
    if resume:
        directory = RunDirectory.resume(out, scenario_values=values, method=method)
    else:
        directory = RunDirectory.create(out, scenario_values=values, method=method, replace=replace)
    with directory:
        if not directory.finished:
            watch.preparing("loading model and data")
            used = engine(scenario) if callable(engine) else engine
            try:
                _run_rounds(scenario, profiles, directory, used, watch)
            finally:
                if callable(engine):
                    used.close()
    return read_record(out)


def _checked_profiles(scenario: Scenario) -> tuple[DeviceProfile, ...]:
    """Refuse unknown names before anything is loaded or written."""
    method = scenario.planning.method
    if method not in METHODS:
        raise InputError(f"planning.method = '{method}': allowed are {', '.join(METHODS)}")
    rule_of(scenario)
    return tuple(profile_of(device) for device in scenario.client_devices)


def _run_rounds(
    scenario: Scenario,
    profiles: tuple[DeviceProfile, ...],
    directory: RunDirectory,
    engine: Engine,
    watch: Observer,
) -> None:
    placement = channel.place(
        scenario.cell, scenario.client_devices, generator(scenario.seed, "placement")
    )
    setting = engine.setting()
    if setting.profiles:
        pairs = zip(setting.profiles, profiles, strict=True)
        profiles = tuple(measured or named for measured, named in pairs)
    this = Run(scenario, setting, profiles, placement, engine, watch)
    state = restored(directory.load_checkpoint())
    if state is None:
        adapter = engine.initial_adapter()
        watch.preparing("measuring the untrained model")
        untrained = engine.evaluate(adapter, final=False)
        may_be_cut = _may_be_cut(this)
        cell = description(scenario, setting, profiles, placement, untrained, may_be_cut)
        directory.describe(cell)
        state = State(0, cell.setup_s, adapter, {}, (finite(untrained.loss),))
    for notice in directory.notices:
        watch.preparing(notice)
    known = directory.description
    watch.started(None if known is None else known.initial_eval_loss)
    while not _is_over(scenario, state.round, state.elapsed_s):
        round = state.round + 1
        state, record = _round(this, state, round)
        directory.append_round(record)
        if _is_over(scenario, round, state.elapsed_s):
            _save_adapter(engine, state.adapter, directory.adapter_path)
        directory.save_checkpoint(round, *packed(state))
        watch.round_ended(record)
    directory.finish()


def _is_over(scenario: Scenario, round: int, elapsed_s: float) -> bool:
    """Whether a run ends after this round: no round or no virtual time is left."""
    budget_s = scenario.time_budget_s
    return round >= scenario.rounds or (
        round > 0 and budget_s is not None and elapsed_s >= budget_s
    )


def _save_adapter(engine: Engine, adapter: Adapter, folder: Path) -> None:
    try:
        engine.save_adapter(adapter, str(folder))
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"the adapter cannot be written to '{folder}': {error}; what was recorded is kept: "
            "make room and go on with --resume"
        ) from None


def _round(this: Run, state: State, round: int) -> tuple[State, RoundRecord]:
    begin = time.perf_counter()
    scenario, engine = this.scenario, this.engine

    # 1. The air and the batches of this round: the same for every method.
    link, loads = _drawn(this, round, state.stacked_bits)

    # 2. Plan, and what the round would have taken without one.
    known = state.speeds or (None,) * len(this.profiles)
    profiles = tuple(map(kept_speed, this.profiles, known))
    problem = problem_of_round(scenario, this.setting.shape, profiles, loads, link)
    if scenario.planning.fit_kappa:
        problem = _with_fitted_kappa(problem, state, scenario)
    decision = decision_of_round(scenario, problem, loads, this.setting.shape, round)
    plan = decision.plan
    unplanned = planning.plan(problem, "none", bound=False)

    # 3. The clients work.
    outcomes = _client_work(this, state, decision, link, round)

    # 4. Merge what is sound.
    statuses = [_status(this, outcome, state.adapter) for outcome in outcomes]
    sound = [
        outcome
        for outcome, status in zip(outcomes, statuses, strict=True)
        if status == "ok" and isinstance(outcome, ClientUpdate)
    ]
    if not sound:
        raise RunError(f"round {round}: no client's update could be used; first: {statuses[0]}")
    adapter = _merged(this, state.adapter, sound, decision)
    moments = dict(state.optimizer_states)
    for update in sound:
        if update.optimizer_state is not None:
            moments[update.client] = update.optimizer_state

    told = [update.train_loss for update in sound if update.train_loss is not None]

    # 5. Put it on the clock.
    names = scenario.client_names
    done = [
        replace(load, steps=load.steps[:count])
        for load, count in zip(loads, decision.steps, strict=True)
    ]
    clients = tuple(
        bill(names[k], profiles[k], done[k], plan, k, outcome, status, link)
        for k, (outcome, status) in enumerate(zip(outcomes, statuses, strict=True))
    )
    latency_s = max(client.total_s for client in clients)
    elapsed_s = state.elapsed_s + latency_s
    last = _is_over(scenario, round, elapsed_s)
    evaluation: Evaluation | None = None
    if last or round % scenario.evaluation.every_rounds == 0:
        evaluation = engine.evaluate(adapter, final=last)
    record = RoundRecord(
        round=round,
        method=plan.method,
        round_latency_s=latency_s,
        elapsed_s=elapsed_s,
        eval_loss=None if evaluation is None else evaluation.loss,
        train_loss=float(np.mean(told)) if told else None,
        uplink_bits=sum(client.uplink_bits for client in clients),
        downlink_bits=link.downlink_bits,
        flops=sum(client.flops for client in clients),
        pruning_loss=plan.pruning_loss,
        objective_s=plan.objective_s,
        lower_bound_s=plan.lower_bound_s,
        gap=plan.gap,
        kappa=problem.kappa,
        predicted_latency_s=plan.round_latency_s,
        none_latency_s=unplanned.round_latency_s,
        metrics={} if evaluation is None else evaluation.metrics,
        wall_s=time.perf_counter() - begin,
        clients=clients,
    )
    stacked_bits = sum(u.uplink_bits for u in sound) if rule_of(scenario).restarts else None
    losses = (*state.losses, finite(record.eval_loss))
    slowed = (*state.pruning_losses, plan.pruning_loss)
    speeds = speeds_after(known, profiles, outcomes)
    return State(round, elapsed_s, adapter, moments, losses, slowed, speeds, stacked_bits), record


def _drawn(this: Run, round: int, stacked_bits: float | None) -> tuple[Link, list[ClientLoad]]:
    scenario = this.scenario
    air = channel.draw(
        scenario.cell,
        scenario.client_devices,
        this.placement,
        generator(scenario.seed, "fading", round=round),
        round=round,
    )
    loads = [
        ClientLoad(
            this.engine.step_tokens(round, k),
            client.examples,
            client.pruning_cost,
            client.most_pruned,
        )
        for k, client in enumerate(this.setting.clients)
    ]
    return link_of(scenario, this.setting.shape, air, stacked_bits), loads


def _may_be_cut(this: Run) -> list[bool]:
    """Whether the method may prune a client, or its memory forces a cut in the first round."""
    scenario = this.scenario
    prunes = METHODS[scenario.planning.method].prunes and scenario.pruning.max_pruning > 0
    link, loads = _drawn(this, 1, None)
    problem = problem_of_round(scenario, this.setting.shape, this.profiles, loads, link)
    return [prunes or bool(least > 0) for least in problem.min_pruning]


def _with_fitted_kappa(
    problem: PlanningProblem, state: State, scenario: Scenario
) -> PlanningProblem:
    """Put the run's own κ into the problem; the first round leaves models as whole as they fit."""
    if not state.pruning_losses:
        return replace(problem, max_pruning=problem.min_pruning)
    rates = [
        scenario.training.in_round(number, scenario.rounds).learning_rate
        for number in range(1, len(state.pruning_losses) + 1)
    ]
    kappa = fitted_kappa(
        state.losses,
        state.pruning_losses,
        prior=problem.kappa,
        largest_pruning_loss=problem.pruning_loss(problem.max_pruning),
        paces=[rate / rates[0] for rate in rates],
    )
    return replace(problem, kappa=kappa)


def _client_work(
    this: Run, state: State, decision: Decision, link: Link, round: int
) -> list[Outcome]:
    """Have every client do its part; outcomes in client order, whoever ends first."""

    def jobs() -> Iterator[ClientJob]:
        for client, name in enumerate(this.scenario.client_names):
            if not decision.steps[client]:
                continue
            this.watch.client_started(round, name)
            yield ClientJob(
                round=round,
                client=client,
                pruning=float(decision.plan.pruning[client]),
                local_steps=decision.steps[client],
                adapter=state.adapter,
                optimizer_state=state.optimizer_states.get(client),
                planned=_planned(decision.plan, link, client),
            )

    outcomes = {outcome.client: outcome for outcome in this.engine.train(jobs())}
    clients = range(len(this.profiles))
    return [outcomes[k] if decision.steps[k] else SatOut(k) for k in clients]


def _planned(plan: Plan, link: Link, client: int) -> Planned:
    return Planned(
        bandwidth_hz=float(plan.bandwidth_hz[client]),
        rate_bps=float(plan.rate_bps[client]),
        downlink_rate_bps=link.downlink_bits / link.downlink_s,
        downlink_s=float(link.needed_s[client]),
        compute_s=float(plan.compute_s[client]),
        upload_s=float(plan.upload_s[client]),
        round_s=plan.round_latency_s,
    )


def _status(this: Run, outcome: Outcome, server: Adapter) -> str:
    if isinstance(outcome, SatOut):
        return "sat out"
    if isinstance(outcome, ClientFailure):
        return f"failed: {outcome.reason}"
    taken = leading(server, this.scenario.client_ranks[outcome.client])
    kept = gather_adapter(taken, outcome.structure, this.setting.shape)
    expected = {name: tuple(value.shape) for name, value in kept.items()}
    return fault_of(outcome.adapter, expected, outcome.train_loss) or "ok"


def _merged(
    this: Run, server: Adapter, updates: Sequence[ClientUpdate], decision: Decision
) -> Adapter:
    """Merge sound updates by the scenario's rule."""
    name = this.scenario.aggregation.rule
    # Where clients restart, their rank is their own; otherwise the server's, zero-padded.
    rank = None if rule_of(this.scenario).restarts else rank_of(server)
    contributions = [
        _contribution(update, this.setting, rank, decision.steps[update.client])
        for update in updates
    ]
    if this.scenario.participation.rule == "partial-fednova":
        contributions = normalised(server, contributions)
    return RULES[name][0](server, contributions)


def _contribution(
    update: ClientUpdate, setting: Setting, rank: int | None, steps: int
) -> Contribution:
    values, held = scatter_adapter(update.adapter, update.structure, setting.shape)
    if rank is not None:
        values, held = padded(values, rank), padded(held, rank)
    return Contribution(values, held, weight=float(update.examples), steps=steps)
