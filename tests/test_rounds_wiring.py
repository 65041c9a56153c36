"""What joins the parts of a round: each test is aimed at one wire that could be cut unseen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import airtune as at
from airtune.adapters.names import Adapter
from airtune.channel import ChannelState
from airtune.engines.local import LocalEngine
from airtune.merging.functions import Contribution
from airtune.models.workload import training_flops
from airtune.planning.broadcast import Link
from airtune.rounds import Cell, Decision, Situation
from airtune.rounds import cell as hooks
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from airtune.training.sizes import tokens_of
from airtune.training.worker import Worker
from watched import Watched

SMALL = ["rounds=3", "task.eval_examples=8", "training.local_steps=2"]


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *overrides])


pytestmark = pytest.mark.usefixtures("one_thread")


def opened(scenario: Scenario, **hooked: Any) -> tuple[Cell, Watched]:
    engine = Watched(scenario)
    return at.open_cell(scenario, engine=engine, **hooked), engine


def test_fading_is_another_one_in_every_round() -> None:
    states: list[ChannelState] = []

    def seen(cell: Cell, round: int) -> ChannelState:
        states.append(hooks.draw(cell, round))
        return states[-1]

    cell, _ = opened(tiny(), draw=seen)
    state = at.begin(cell)
    states.clear()
    for _ in range(2):
        state, _ = at.step(cell, state)
    first, second = states
    assert (first.snr_hz != second.snr_hz).all()
    # And a round's is the same whenever it is drawn.
    np.testing.assert_array_equal(hooks.draw(cell, 1).snr_hz, first.snr_hz)


def test_every_round_has_its_own_batches_of_the_clients_training_texts() -> None:
    scenario = tiny("task.client_eval_examples=4")
    worker = Worker(scenario)
    trained = sum(len(worker._train_data[client]) for client in range(4))
    assert trained + 4 * 4 == scenario.task.train_examples
    for client in range(4):
        mine = {tuple(e.input_ids) for e in worker._train_data[client]}
        held = {tuple(e.input_ids) for e in worker._client_test_data[client]}
        rounds = []
        for round in (1, 2):
            rows = set()
            for batch in worker.batches(round, client, 2):
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
                    rows.add(tuple(ids[mask.bool()].tolist()))
            assert rows <= mine
            rounds.append(rows)
        assert rounds[0] != rounds[1]
        # Sums repeat, so only texts that are held back and nowhere else can tell.
        assert not (held - mine) & (rounds[0] | rounds[1])


def test_a_client_is_trained_on_the_batches_of_its_round() -> None:
    cell, engine = opened(tiny())
    state = at.begin(cell)
    state, _ = at.step(cell, state)
    state, record = at.step(cell, state)
    second = [job for job in engine.jobs if job.round == 2]
    assert [job.client for job in second] == [0, 1, 2, 3]
    for job, client in zip(second, record.clients, strict=True):
        batches = engine.worker.batches(2, job.client, 2)
        labels = sum(int((batch.labels != -100).sum()) for batch in batches)
        assert client.label_tokens == labels


def test_clients_go_on_from_their_own_moments() -> None:
    cell, engine = opened(tiny("training.keep_optimizer=true", "planning.method=none"))
    state = at.begin(cell)
    assert state.optimizer_states == {}
    state, _ = at.step(cell, state)
    kept = state.optimizer_states
    assert sorted(kept) == [0, 1, 2, 3]
    steps = {float(v) for moments in kept.values() for k, v in moments.items() if "|step" in k}
    assert steps == {2.0}
    state, _ = at.step(cell, state)
    for job in engine.jobs[4:]:
        assert job.optimizer_state is kept[job.client]
    steps = {
        float(value)
        for moments in state.optimizer_states.values()
        for key, value in moments.items()
        if key.endswith("|step")
    }
    assert steps == {4.0}  # two steps more, not two anew
    # Without the moments the same job ends elsewhere.
    job = engine.jobs[4]
    (without,) = LocalEngine.train(engine, [replace(job, optimizer_state=None)])
    assert isinstance(without, ClientUpdate)
    known = engine.outcomes[4]
    assert isinstance(known, ClientUpdate)
    assert any(not torch.equal(without.adapter[n], known.adapter[n]) for n in without.adapter)


def test_updates_are_weighed_by_their_clients_examples_and_steps() -> None:
    seen: list[Contribution] = []

    def merge(cell: Cell, adapter: Adapter, contributions: Sequence[Contribution]) -> Adapter:
        seen.extend(contributions)
        return hooks.merge(cell, adapter, contributions)

    scenario = tiny("partition.kind=quantity", "partition.alpha=0.3", "participation.rule=partial",
                    "planning.method=bandwidth-only", "planning.kappa=0.1",
                    "cell.uplink_bandwidth_hz=5e6", "devices.1.utilisation=5e-5")  # fmt: skip
    cell, engine = opened(scenario, merge=merge)
    _, record = at.step(cell, at.begin(cell))
    examples = [len(texts) for texts in engine.worker._train_data]
    assert len(set(examples)) > 1
    assert [one.weight for one in seen] == examples == [c.examples for c in record.clients]
    steps = [job.assignment.mode.local_steps for job in engine.jobs]
    assert len(set(steps)) > 1
    assert [one.steps for one in seen] == steps == [c.local_steps for c in record.clients]


def test_fednova_normalises_what_partial_work_brought() -> None:
    given: dict[str, tuple[Adapter, list[Contribution]]] = {}
    merged: dict[str, Adapter] = {}

    def merge(cell: Cell, adapter: Adapter, contributions: Sequence[Contribution]) -> Adapter:
        rule = cell.scenario.participation.rule
        given[rule] = adapter, list(contributions)
        merged[rule] = hooks.merge(cell, adapter, contributions)
        return merged[rule]

    for rule in ("partial", "partial-fednova"):
        scenario = tiny(f"participation.rule={rule}", "planning.method=bandwidth-only",
                        "planning.kappa=0.1", "cell.uplink_bandwidth_hz=5e6",
                        "devices.1.utilisation=5e-5")  # fmt: skip
        cell, _ = opened(scenario, merge=merge)
        at.step(cell, at.begin(cell))
    server, updates = given["partial-fednova"]
    steps = [one.steps for one in updates]
    assert len(set(steps)) > 1
    share = np.array([one.weight for one in updates]) / sum(one.weight for one in updates)
    effective = float(share @ steps)
    for name, old in server.items():
        # Wang et al.: w + tau_eff * sum p_k (w_k - w) / tau_k, from its definition.
        moved = sum(
            p * (one.values[name] - old) / one.steps for p, one in zip(share, updates, strict=True)
        )
        torch.testing.assert_close(merged["partial-fednova"][name], old + effective * moved)
    name = next(n for n in server if "lora_B" in n)
    assert not torch.allclose(merged["partial"][name], merged["partial-fednova"][name], atol=1e-7)


def test_a_frozen_factor_is_in_the_plan_the_job_the_work_and_the_bill() -> None:
    plain, frozen = (
        tiny("planning.method=none"),
        tiny("planning.method=none", "aggregation.rule=ffa-lora"),
    )
    records = {}
    for scenario in (plain, frozen):
        cell, engine = opened(scenario)
        _, record = at.step(cell, at.begin(cell))
        records[scenario.aggregation.rule] = record
        rule = scenario.aggregation.rule
        assert {job.assignment.mode.freezes_a for job in engine.jobs} == {rule == "ffa-lora"}
        # What was planned is what was done and sent: counts on both sides agree.
        for job, client in zip(engine.jobs, record.clients, strict=True):
            assert job.assignment.planned is not None
            assert client.upload_s == pytest.approx(job.assignment.planned.upload_s, rel=1e-9)
            assert client.compute_s == pytest.approx(job.assignment.planned.compute_s, rel=1e-9)
            assert client.downlink_s == pytest.approx(job.assignment.planned.downlink_s)
    for a, b in zip(records["ffa-lora"].clients, records["fedit"].clients, strict=True):
        assert a.uplink_bits < 0.7 * b.uplink_bits
        assert a.downlink_bits < 0.7 * b.downlink_bits
        assert a.flops < b.flops


def test_the_broadcast_waits_for_those_who_listen_alone() -> None:
    situations: list[Situation] = []

    def decide(cell: Cell, situation: Situation) -> Decision:
        situations.append(situation)
        return hooks.decide(cell, situation)

    scenario = tiny("participation.rule=deadline", "planning.method=bandwidth-only",
                    "planning.kappa=0.1", "cell.uplink_bandwidth_hz=5e6",
                    "devices.1.utilisation=5e-5", "devices.1.distance_m=199",
                    "cell.downlink_bandwidth_hz=1e4")  # fmt: skip
    cell, engine = opened(scenario, decide=decide)
    _, record = at.step(cell, at.begin(cell))
    out = [client.status == "sat out" for client in record.clients]
    assert 0 < sum(out) < 4
    link: Link = situations[-1].link
    rates, present = link.air.downlink_rate_bps, ~np.array(out)
    slowest = float(rates[present].min())
    assert slowest > float(rates.min())
    for k, client in enumerate(record.clients):
        expected = 0.0 if out[k] else float(link.needed_bits[k]) / slowest
        assert client.downlink_s == pytest.approx(expected)
        assert client.downlink_bits == (0.0 if out[k] else link.needed_bits[k])
    for job in engine.jobs:
        assert job.assignment.downlink_rate_bps == slowest
    assert record.predicted_latency_s == pytest.approx(record.round_latency_s, rel=0.02)


def test_what_a_decision_says_is_what_the_client_does_sends_and_pays_for() -> None:
    def decide(cell: Cell, situation: Situation) -> Decision:
        made = hooks.decide(cell, situation)
        first, second, *others = made.assignments
        assert first is not None
        assert second is not None
        mode = replace(first.mode, local_steps=1, rank=2, bits_per_value=4, bits_per_scale=32)
        changed = (replace(first, mode=mode, pruning=0.5), None, *others)
        return Decision(made.plan, changed)

    cell, engine = opened(tiny("planning.method=none"), decide=decide)
    state = at.begin(cell)
    state, record = at.step(cell, state)
    first, second, third, _ = record.clients
    assert (first.local_steps, first.rank, first.bits_per_value) == (1, 2, 4)
    assert first.asked_pruning == 0.5
    assert first.pruning == pytest.approx(0.5, abs=0.1)
    assert second.status == "sat out"
    assert second.rank is second.pruning is None
    assert [job.client for job in engine.jobs] == [0, 2, 3]
    update = engine.outcomes[0]
    assert isinstance(update, ClientUpdate)
    ranks = {v.shape[0] for n, v in update.adapter.items() if "lora_A" in n}
    assert ranks == {2}
    assert first.uplink_bits == update.uplink_bits < 0.3 * third.uplink_bits
    batch = engine.worker.batches(1, 0, 2)[0]
    step, shape = tokens_of(batch), engine.worker.shape
    one_step = training_flops(shape, update.structure.sizes, step, engine.jobs[0].assignment.mode)
    assert first.flops == update.flops == one_step
    assert first.label_tokens == int((batch.labels != -100).sum())


def test_a_failed_client_has_no_rate_that_it_did_not_realise() -> None:
    class Fails(Watched):
        def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
            for outcome in super().train(jobs):
                yield ClientFailure(0, "no memory") if outcome.client == 0 else outcome

    scenario = tiny()
    cell = at.open_cell(scenario, engine=Fails(scenario))
    _, record = at.step(cell, at.begin(cell))
    failed, sound = record.clients[:2]
    assert failed.status == "failed: no memory"
    assert failed.rate_bps is failed.pruning is failed.train_loss is None
    assert failed.uplink_bits == failed.upload_s == 0
    assert sound.rate_bps is not None
    assert failed.bandwidth_hz > 0


def test_a_notebook_can_stop_look_and_go_on() -> None:
    scenario = tiny("planning.method=none")
    with at.open_cell(scenario) as cell:
        start = at.begin(cell)
        one, first = at.step(cell, start)
        _, again = at.step(cell, start)
        assert replace(again, wall_s=0.0) == replace(first, wall_s=0.0)
        two, second = at.step(cell, one)
        assert (one.round, two.round, second.round) == (1, 2, 2)
        assert two.elapsed_s == pytest.approx(one.elapsed_s + second.round_latency_s)
