"""One round by hand: the engine answers by rules, so that every figure can be followed."""

from __future__ import annotations

from dataclasses import asdict, replace
from time import perf_counter

import numpy as np
import pytest
import torch

import airtune as at
from airtune import planning
from airtune.errors import InputError, RunError
from airtune.merging.server import server_step
from airtune.models.workload import HEADER_BITS
from airtune.planning.floor import first_queues, next_queues
from airtune.randomness import generator
from airtune.record import RoundRecord
from airtune.rounds.control import controls_after
from airtune.rounds.situation import situation_of
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientJob, ClientUpdate, Measured
from airtune.units import linear_to_db
from scripted import Outcome, Round, Scripted, failing


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", ["planning.method=none", *settings])


# --- the record ----------------------------------------------------------------------------------


def test_a_rounds_line_adds_up_its_clients_and_its_plan() -> None:
    began = perf_counter()
    one = Round(tiny("planning.method=exact", "planning.kappa=0.6", "rounds=5"), rounds=2)
    took = perf_counter() - began
    record, plan, names = one.record, one.plan, one.cell.scenario.client_names
    assert isinstance(record, RoundRecord)
    assert (record.round, record.method, record.kappa) == (2, "exact", 0.6)
    assert [client.name for client in record.clients] == list(names)
    for k, client in enumerate(record.clients):
        profile = one.cell.profiles[k]
        assignment = one.decision.assignments[k]
        assert assignment is not None
        assert (client.flops, client.uplink_bits) == (1e6 * (k + 2), 1e4 * (k + 2))
        assert client.downlink_bits == assignment.downlink_bits
        assert client.compute_s == pytest.approx(client.flops / profile.effective_flops)
        assert client.upload_s == pytest.approx(client.uplink_bits / assignment.rate_bps)
        assert client.train_loss == 1.0 + 0.2 * k
        assert client.label_tokens == sum(20 + k + i for i in range(4))
        snr = one.situation.link.air.snr_hz[k] / assignment.bandwidth_hz
        assert client.snr_db == pytest.approx(linear_to_db(snr))
        assert client.eval_loss is client.inclusion_probability is client.success_probability
    latency = max(client.total_s for client in record.clients)
    assert record.round_latency_s == latency
    assert record.elapsed_s == one.after.elapsed_s == one.before.elapsed_s + latency
    assert record.uplink_bits == 1e4 * (2 + 3 + 4 + 5)
    assert record.downlink_bits == max(client.downlink_bits for client in record.clients)
    assert record.flops == 1e6 * (2 + 3 + 4 + 5)
    assert record.energy_j == pytest.approx(sum(client.energy_j or 0 for client in record.clients))
    waited = [client.wait_j or 0.0 for client in record.clients]
    idle_w = [0.3 * (profile.power_w or 0.0) for profile in one.cell.profiles]
    for client, wait_j, watts in zip(record.clients, waited, idle_w, strict=True):
        assert wait_j == pytest.approx(watts * (latency - client.compute_s))
    assert record.train_loss == pytest.approx(np.mean([1.0, 1.2, 1.4, 1.6]))
    assert (record.eval_loss, record.metrics) == (one.after.losses[-1], {"accuracy": 0.25})
    for field in ("pruning_loss", "objective_s", "lower_bound_s", "gap"):
        assert getattr(record, field) == getattr(plan, field)
    assert record.pruning_loss > 0
    assert record.predicted_latency_s == plan.round_latency_s
    none = planning.plan(one.situation.problem, "none", bound=False)
    assert record.none_latency_s == none.round_latency_s
    assert record.cohort is record.available is record.waited_s is None
    assert 0 < record.wall_s < took


def test_the_state_after_a_round_holds_what_the_next_one_needs() -> None:
    one = Round(tiny("training.keep_optimizer=true", "rounds=5"), rounds=2)
    after, before = one.after, one.before
    assert (after.round, before.round) == (2, 1)
    assert after.adapter is one.merged
    assert {k: float(v["an entry|step"]) for k, v in after.optimizer_states.items()} == {
        0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0}  # fmt: skip
    assert after.losses == (*before.losses, one.record.eval_loss)
    assert len(after.losses) == 3
    assert after.pruning_losses == (*before.pruning_losses, one.plan.pruning_loss)
    assert after.speeds == (None,) * 4
    assert after.held is None
    assert after.missed_bits == ()
    assert after.queues == after.held_ranks == ()
    assert after.server_moments == {}
    assert asdict(after.controls) == {"server": {}, "clients": {}}


def test_a_round_is_asked_of_every_client_and_answers_are_told_apart() -> None:
    one = Round(tiny("training.keep_optimizer=true"), rounds=2)
    names = one.cell.scenario.client_names
    assert [what for what in one.listening.heard if isinstance(what, tuple)] == [
        (round, name) for round in (1, 2) for name in names
    ]
    for k, job in enumerate(one.engine.jobs):
        assert job.round == 2
        assert job.assignment is one.decision.assignments[k]
        assert job.adapter is one.before.adapter
        assert job.optimizer_state is one.before.optimizer_states[k]
        assert job.correction is job.rate_round is None
    for k, own in enumerate(one.contributions):
        assert (own.weight, own.steps) == (10.0 * (k + 1), 4)
        for name, value in own.values.items():
            torch.testing.assert_close(value, one.before.adapter[name] + 0.01 * (k + 1))
            assert own.held[name].all()


def test_the_servers_optimiser_steps_from_the_adapter_and_keeps_its_moments() -> None:
    scenario = tiny("aggregation.server_optimizer=adam", "aggregation.server_learning_rate=0.3")
    one = Round(scenario, rounds=2)
    expected, moments = server_step(
        scenario.aggregation, one.before.adapter, one.merged, one.before.server_moments
    )
    assert set(one.before.server_moments) == {"momentum", "second"}
    for name in expected:
        assert torch.equal(one.after.adapter[name], expected[name])
        for moment in moments:
            assert torch.equal(one.after.server_moments[moment][name], moments[moment][name])


def test_a_failure_is_left_out_of_everything_that_is_merged() -> None:
    scenario = tiny("rounds=5")
    one = Round(scenario, Scripted(scenario, failing(1)))
    assert [client.status for client in one.record.clients] == ["ok", "failed: fault 1", "ok", "ok"]
    assert one.record.clients[1].total_s == 71.0
    assert one.record.round_latency_s >= 71.0
    assert [own.weight for own in one.contributions] == [10.0, 30.0, 40.0]
    assert one.record.train_loss == pytest.approx(np.mean([1.0, 1.2, 1.3]))
    alone = Round(scenario, Scripted(scenario, failing(0, 2, 3)))
    assert [own.weight for own in alone.contributions] == [20.0]


def test_a_round_that_nothing_came_of_ends_the_run() -> None:
    scenario = tiny()
    with pytest.raises(RunError) as refused:
        Round(scenario, Scripted(scenario, failing(0, 1, 2, 3)))
    assert str(refused.value) == (
        "round 1: no client's update could be used; first: failed: fault 0"
    )
    with pytest.raises(RunError) as refused:
        Round(scenario, Scripted(scenario, failing(1)), out=(0, 2, 3))
    assert str(refused.value).endswith("first: failed: fault 1")
    with pytest.raises(RunError, match="could be used; first: every client sits out"):
        Round(scenario, out=(0, 1, 2, 3))


def test_a_loss_that_is_not_finite_is_rejected_and_not_averaged() -> None:
    scenario = tiny("rounds=5")

    def answer(job: ClientJob, update: ClientUpdate) -> Outcome:
        return replace(update, train_loss=float("nan") if job.client == 2 else None)

    one = Round(scenario, Scripted(scenario, answer))
    assert one.record.clients[2].status == "rejected: training loss is not finite"
    assert one.record.train_loss is None  # private ones say none
    assert [own.weight for own in one.contributions] == [10.0, 20.0, 40.0]


def test_who_sits_out_is_billed_nothing() -> None:
    one = Round(tiny("rounds=5"), out=(0, 3))
    first, second, third, last = one.record.clients
    assert first.status == last.status == "sat out"
    assert (first.examples, last.examples) == (10, 40)
    assert first.total_s == first.energy_j == last.uplink_bits == 0
    assert (second.status, third.status) == ("ok", "ok")
    assert [job.client for job in one.engine.jobs] == [1, 2]
    assert one.record.uplink_bits == 1e4 * (2 + 3)


def test_a_round_that_is_not_measured_has_no_loss() -> None:
    one = Round(tiny("evaluation.every_rounds=2", "rounds=5"))
    assert one.engine.evaluations == []
    assert one.record.eval_loss is None
    assert one.record.metrics == {}
    assert one.after.losses == (*one.before.losses, None)
    assert one.after.optimizer_states == {}
    assert one.after.draws == one.before.draws


# --- what some scenarios add ---------------------------------------------------------------------


def test_energy_budgets_do_not_bind_the_round_without_pruning() -> None:
    whole = Round(tiny("rounds=5"))
    profile, problem = whole.cell.profiles[0], whole.situation.problem
    budget_j = 0.8 * (profile.power_w or 0.0) * float(problem.compute_s(np.zeros(4))[0])
    one = Round(tiny("planning.method=exact", f"devices.0.energy_budget_j={budget_j}", "rounds=5"))
    problem = one.situation.problem
    assert problem.energy_budget_j is not None
    with pytest.raises(InputError, match="is not kept by method 'none'"):
        planning.plan(problem, "none", bound=False)
    none = planning.plan(problem.without_choice(), "none", bound=False)
    assert one.record.none_latency_s == none.round_latency_s


def test_a_real_device_is_planned_at_the_speed_that_it_kept() -> None:
    scenario = tiny("rounds=5")

    def answer(job: ClientJob, update: ClientUpdate) -> Outcome:
        real = Measured(downlink_s=1.0, compute_s=8.0, upload_s=2.0, engine_s=0.5)
        return replace(update, measured=real) if job.client == 1 else update

    one = Round(scenario, Scripted(scenario, answer), state={"speeds": (None, 3e6, None, 4e6)})
    kept = [profile.effective_flops for profile in one.situation.profiles]
    plain = [profile.effective_flops for profile in one.cell.profiles]
    assert kept == [plain[0], 3e6, plain[2], 4e6]
    assert one.record.clients[1].total_s == 11.0
    assert one.record.clients[3].compute_s == pytest.approx(4e6 / 4e6)
    after = one.after.speeds
    assert after[1] == pytest.approx(2 / (1 / 3e6 + 8.0 / 2e6))
    assert (after[0], after[2], after[3]) == (None, None, 4e6)


def test_a_deadline_is_counted_from_the_planned_length() -> None:
    scenario = tiny("participation.deadline_slack=1.5", "rounds=5")

    def answer(job: ClientJob, update: ClientUpdate) -> Outcome:
        return replace(update, uplink_bits=1e9) if job.client == 2 else update

    one = Round(scenario, Scripted(scenario, answer))
    deadline_s = 1.5 * one.plan.round_latency_s
    assert one.record.clients[2].status.endswith(f"the deadline was {deadline_s:.4g} s")
    assert one.record.clients[2].total_s == pytest.approx(deadline_s)
    assert [own.weight for own in one.contributions] == [10.0, 20.0, 40.0]


def test_what_is_stacked_is_what_came() -> None:
    scenario = tiny("aggregation.rule=flora", "rounds=5")
    one = Round(scenario, Scripted(scenario, failing(1)))
    # The second client's work failed: it does not have what the first round began with.
    assert one.after.missed_bits == (1e4 * (1 + 3 + 4),) * 4
    ranks = {value.shape for name, value in one.contributions[0].values.items() if "lora_A" in name}
    assert {size[0] for size in ranks} == {4}
    two = Round(scenario, rounds=2)
    assert two.situation.link.needed_bits.tolist() == [1e4 * (1 + 2 + 3 + 4)] * 4
    lost = Round(tiny("aggregation.rule=flora", "cell.outage_probability=0.999", "rounds=5"))
    assert lost.contributions == []
    assert lost.after.missed_bits == (0.0,) * 4
    assert (
        situation_of(lost.cell, lost.after, lost.cell.profiles).link.needed_bits.tolist()
        == [HEADER_BITS] * 4
    )


def test_who_missed_rounds_is_sent_their_updates_as_well() -> None:
    scenario = tiny("aggregation.rule=flora", "participation.cohort=2", "rounds=6",
                    "participation.cohort_by=round-robin", "planning.method=none")  # fmt: skip
    engine = Scripted(scenario)
    with at.open_cell(scenario, engine=engine) as cell:
        state = at.begin(cell)
        lacked = [0.0] * 4
        for _ in range(4):
            state, record = at.step(cell, state)
            came = [c for c in record.clients if c.uplink_bits]
            assert len(came) == 2
            for client in came:
                k = scenario.client_names.index(client.name)
                assert client.downlink_bits == (lacked[k] or HEADER_BITS)
                lacked[k] = 0.0
            stacked = sum(client.uplink_bits for client in came)
            lacked = [bits + stacked for bits in lacked]
            assert state.missed_bits == tuple(lacked)
    assert len({round(bits) for bits in lacked}) == 2


def test_a_smaller_rank_is_padded_unless_clients_restart() -> None:
    for rule, rank in (("fedit", 4), ("flora", 2)):
        one = Round(tiny(f"aggregation.rule={rule}", "devices.1.lora_rank=2", "rounds=5"))
        small = one.contributions[2]
        for name, value in small.values.items():
            held = small.held[name]
            axis = 0 if "lora_A" in name else 1
            assert value.shape[axis] == held.shape[axis] == rank
            assert held.narrow(axis, 0, 2).all()
            assert not held.narrow(axis, 2, rank - 2).any()
            assert not value.narrow(axis, 2, rank - 2).any()


def test_the_floor_owes_what_was_not_contributed_and_merged() -> None:
    scenario = tiny("planning.method=exact", 'planning.knobs=["bandwidth","rank"]', "rounds=5",
                    "participation.floor=0.4", "planning.kappa=0.5")  # fmt: skip
    assert Round(scenario).before.queues == tuple(
        first_queues(4, 0.4, generator(1, "floor")).tolist()
    )
    one = Round(scenario, Scripted(scenario, failing(1)),
                state={"queues": (2.5, 0.3, 1.7, 0.0)})  # fmt: skip
    assert one.situation.queues.tolist() == list(one.before.queues)
    assert one.plan.losses is not None
    contributed = (1 - one.plan.losses) * np.array([1, 0, 1, 1])
    expected = next_queues(np.array(one.before.queues), contributed, 0.4)
    assert one.after.queues == tuple(expected.tolist())
    assert (expected[:3] > 0.5).all()
    owed = [client.binds for client in one.record.clients]
    assert ["floor" in (binds or "") for binds in owed] == [z > 0 for z in one.before.queues]


def test_a_cut_that_memory_demands_is_said_to_bind() -> None:
    one = Round(tiny("devices.1.memory_bytes=1.1e6", "rounds=5"))
    assert [("memory" in (client.binds or "")) for client in one.record.clients] == [
        False, False, True, False]  # fmt: skip


def test_control_variates_go_to_the_clients_and_back() -> None:
    scenario = tiny("training.scaffold=true", "rounds=5")
    one = Round(scenario, Scripted(scenario, failing(3)), rounds=2)
    before = one.before.controls
    assert sorted(before.clients) == [0, 1, 2]
    updates = [one.engine.update(job) for job in one.engine.jobs[:3]]
    expected = controls_after(before, one.before.adapter, updates, [10, 20, 30, 40],
                              one.engine.shape)  # fmt: skip
    for name, value in expected.server.items():
        assert torch.equal(one.after.controls.server[name], value)
    for job in one.engine.jobs:
        assert job.correction is not None
        wanted = before.correction(job.client, one.before.adapter)
        assert all(torch.equal(job.correction[name], wanted[name]) for name in wanted)
    assert any((value != 0).any() for value in one.engine.jobs[3].correction.values())


def test_clients_own_losses_stand_beside_their_bills() -> None:
    scenario = tiny("task.client_eval_examples=2", "participation.cohort=3", "seed=5", "rounds=5",
                    "participation.cohort_by=round-robin")  # fmt: skip
    one = Round(scenario)
    cohort = one.situation.cohort
    assert cohort != (0, 1, 2)
    assert [client.eval_loss for client in one.record.clients] == [5.0 + k for k in cohort]
    assert [client.inclusion_probability for client in one.record.clients] == [0.75] * 3
    assert (one.record.cohort, one.record.available, one.record.waited_s) == (3, 4, 0.0)
    assert one.engine.evaluations == [(one.after.adapter, False, cohort)]
    assert [own.weight for own in one.contributions] == [10.0 * (k + 1) for k in cohort]
    assert one.situation.drawn is not None
    assert one.after.draws == one.situation.drawn.memory != one.before.draws
    assert not any("asked for" in str(what) for what in one.listening.heard)
    for k, client in zip(cohort, one.record.clients, strict=True):
        assert client.examples == 10 * (k + 1)
        assert client.label_tokens == sum(10 + k + i for i in range(4))
        assert client.compute_j == pytest.approx(
            (one.cell.profiles[k].power_w or 0.0) * client.compute_s
        )
        assert client.compute_s == pytest.approx(
            client.flops / one.cell.profiles[k].effective_flops
        )


def test_unbiased_weights_count_the_draw_and_the_air() -> None:
    scenario = tiny("participation.cohort=3", "participation.weights=inclusion", "seed=4",
                    "cell.outage_probability=0.2", "rounds=5")  # fmt: skip
    one = Round(scenario)
    arrived = [k for k, client in zip(one.situation.cohort, one.record.clients, strict=True)
               if client.status == "ok"]  # fmt: skip
    assert len(arrived) > 0
    assert [own.weight for own in one.contributions] == pytest.approx(
        [10 * (k + 1) / 100 / (0.75 * 0.8) for k in arrived]
    )


def test_an_upload_that_is_lost_is_kept_by_the_client_alone() -> None:
    scenario = tiny("cell.outage_probability=0.5", "training.keep_optimizer=true", "seed=4",
                    "rounds=5", "aggregation.downlink_change_bits=4")  # fmt: skip
    one = Round(scenario, Scripted(scenario, failing(0)))
    status = [client.status for client in one.record.clients]
    assert status[0] == "failed: fault 0"
    assert set(status[1:]) == {"ok", "lost: outage"}
    assert sorted(one.after.optimizer_states) == [1, 2, 3]
    sound = [k for k in range(4) if status[k] == "ok"]
    assert [own.weight for own in one.contributions] == [10.0 * (k + 1) for k in sound]
    # A client that worked has heard the broadcast, also where its upload was lost.
    assert one.after.held_ranks == (0, 4, 4, 4)
    assert one.after.held is not None
    assert one.record.train_loss == pytest.approx(np.mean([1 + 0.1 * k for k in sound]))
    two = Round(scenario, Scripted(scenario), rounds=2)
    assert two.after.held is two.engine.jobs[0].adapter
    assert two.engine.jobs[0].adapter is not two.before.adapter
    lost = Round(tiny("cell.outage_probability=0.999", "seed=2", "rounds=5"))
    assert lost.contributions == []
    assert lost.after.adapter is lost.before.adapter
    assert lost.record.train_loss is None
