"""A broadcast of changes in few bits: who is sent what, what it takes, what the server keeps."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import airtune as at
from airtune.adapters.few_bits import nearest_change
from airtune.adapters.names import Adapter
from airtune.errors import InputError
from airtune.models.affine import affine_coefficients
from airtune.models.workload import full_sizes, payload_bits
from airtune.planning import plan
from airtune.planning.assigning import assignments_of
from airtune.planning.broadcast import needed_bits
from airtune.planning.inputs import Situation, situation_of_scenario
from airtune.planning.knobs import modes_offered
from airtune.planning.round_plan import plan_round, prices_of
from airtune.rounds import Cell, Decision
from airtune.rounds import cell as hooks
from airtune.rounds.broadcast import onto_server
from airtune.scenario import Scenario, load_scenario
from watched import Watched

A, B = "layer.lora_A.weight", "layer.lora_B.weight"
SMALL = ["rounds=3", "task.eval_examples=8", "training.local_steps=1", "planning.method=none",
         "aggregation.downlink_change_bits=4"]  # fmt: skip


def tiny(*changes: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *changes])


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_a_broadcast_rounds_off_comes_with_the_next_ones(bits: int) -> None:
    torch.manual_seed(0)
    server: Adapter = {A: torch.randn(3, 20), B: torch.randn(10, 3)}
    held, most = dict(server), 0.0
    for _ in range(40):
        server = {name: value + (torch.rand_like(value) * 2 - 1) for name, value in server.items()}
        before, held = held, nearest_change(held, server, bits).onto(held)
        for name in server:
            along = 1 if name == A else 0
            scale = (server[name] - before[name]).abs().amax(along, keepdim=True)
            scale = scale / (2 ** (bits - 1) - 1)
            off = (server[name] - held[name]).abs()
            assert (off <= scale * (0.5 + 1e-4)).all()
            most = max(most, float(off.max()))
    assert most <= 1.0 / (2**bits - 3) * (1 + 1e-4)
    assert most > 0.1 / (2**bits - 3)


def test_a_clients_change_goes_onto_the_servers_own_values() -> None:
    server: Adapter = {A: torch.full((4, 3), 5.0), B: torch.full((3, 4), 5.0)}
    sent = {name: value - 1.0 for name, value in server.items()}
    values = {A: torch.full((2, 3), 7.0), B: torch.full((3, 2), 7.0)}
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    held[A][0, 0] = False
    moved = onto_server(server, sent, values, held)
    assert moved[A][0, 0] == 7.0
    assert moved[A][1, 2] == moved[B][0, 0] == 8.0  # 7 − 4 onto 5
    assert onto_server(server, server, values, held) is values


OUT, LOW = {2: 1}, {2: 2}
"""By round: who sits out; who is told rank 2."""


def decide(cell: Cell, situation: Situation) -> Decision:
    made = hooks.decide(cell, situation)
    modes = [
        None if OUT.get(situation.round) == k
        else replace(mode, rank=2) if LOW.get(situation.round) == k
        else mode
        for k, mode in enumerate(situation.modes)
    ]  # fmt: skip
    link = situation.link
    needs = [
        needed_bits(cell.scenario, situation.shape, [mode or whole], 0.0, int(link.held_ranks[k]))
        for k, (mode, whole) in enumerate(zip(modes, situation.modes, strict=True))
    ]
    bits, whole = (np.concatenate(parts) for parts in zip(*needs, strict=True))
    link = replace(link, needed_bits=bits, needs_whole=whole)
    return Decision(made.plan, assignments_of(made.plan, modes, link, situation.cohort))


def test_those_who_heard_are_sent_the_change_and_the_others_the_whole_adapter() -> None:
    scenario = tiny("rounds=4")
    engine = Watched(scenario, fails=(3, 0))
    with at.open_cell(scenario, engine=engine, decide=decide) as cell:
        states, records = [at.begin(cell)], []
        for _ in range(4):
            state, record = at.step(cell, states[-1])
            states.append(state)
            records.append(record)
        shape, weights = cell.federation.shape, [c.examples for c in cell.federation.clients]
    mode = engine.job_at[1, 0].assignment.mode
    sizes = full_sizes(shape)

    def change(rank: int) -> float:
        few = replace(mode, rank=rank, bits_per_value=4, bits_per_scale=32)
        return payload_bits(shape, sizes, few)

    whole = payload_bits(shape, sizes, mode)
    assert change(4) < 0.6 * whole
    # Round 2: client 1 sits out and 2 is told half of the ranks. Round 3: both need the whole
    # adapter, behind the change for the others; 0 fails then, so that it needs it in round 4.
    expected = [
        [whole] * 4,
        [change(4), 0.0, change(2), change(4)],
        [change(4), change(4) + whole, change(4) + whole, change(4)],
        [change(4) + whole, change(4), change(4), change(4)],
    ]
    assert states[2].held_ranks == (4, 0, 2, 4)
    assert states[3].held_ranks == (0, 4, 4, 4)
    for record, bits in zip(records, expected, strict=True):
        assert [client.downlink_bits for client in record.clients] == bits
        assert record.downlink_bits == max(bits)
        rate = {client.downlink_s / b for client, b in zip(record.clients, bits, strict=True) if b}
        assert max(rate) == pytest.approx(min(rate))
    # All who listen begin from one adapter: the change on what the listeners had.
    assert all(engine.job_at[1, k].adapter is states[0].adapter for k in range(4))
    for number in (2, 3, 4):
        held = states[number - 1].held
        assert held is not None
        sent = nearest_change(held, states[number - 1].adapter, 4).onto(held)
        mine = [job.adapter for (when, _), job in engine.job_at.items() if when == number]
        assert any((sent[name] != states[number - 1].adapter[name]).any() for name in sent)
        for adapter in mine:
            assert all(torch.equal(adapter[name], sent[name]) for name in sent)
        # FedIT on the server's own values: the mean change, whatever the broadcast rounded off.
        told = [k for k in range(4) if (number, k) in engine.update_at and number != 2]
        if told:
            total = sum(weights[k] for k in told)
            for name, before in states[number - 1].adapter.items():
                moved = sum(
                    weights[k] / total * (engine.update_at[number, k].adapter[name] - sent[name])
                    for k in told
                )
                torch.testing.assert_close(
                    states[number].adapter[name], before + moved, atol=1e-6, rtol=1e-5
                )


def test_where_all_need_the_whole_adapter_it_is_the_servers_own() -> None:
    def in_turn(cell: Cell, situation: Situation) -> Decision:
        made = hooks.decide(cell, situation)
        here = [a if k % 2 == situation.round % 2 else None for k, a in enumerate(made.assignments)]
        return Decision(made.plan, tuple(here))

    scenario = tiny("rounds=2")
    engine = Watched(scenario)
    with at.open_cell(scenario, engine=engine, decide=in_turn) as cell:
        first, _ = at.step(cell, at.begin(cell))
        at.step(cell, first)
    assert engine.job_at[2, 0].adapter is first.adapter


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if key != "wall_s"} for one in found]


def test_a_resumed_run_knows_who_heard_and_what_they_hold(tmp_path: Path) -> None:
    # Some sit round 1 out; all come in round 2.
    knobs = ["planning.method=exact", 'planning.knobs=["bandwidth","absence"]',
             "participation.rule=in-turn"]  # fmt: skip
    at.run(tiny("rounds=2", *knobs), out=tmp_path / "whole")
    at.run(tiny("rounds=1", *knobs), out=tmp_path / "parts")
    at.run(tiny("rounds=2", *knobs), out=tmp_path / "parts", resume=True)
    whole = lines(tmp_path / "whole")
    assert lines(tmp_path / "parts") == whole
    first, second = ([client["downlink_bits"] for client in one["clients"]] for one in whole)
    assert 0.0 in first
    assert max(first) > min(second) > 0  # the change
    assert max(second) > max(first)  # the whole adapter behind it


@pytest.mark.parametrize("held", [(4, 0, 4), (1, 4, 0), (0, 0, 0), (4, 4, 4)])
@pytest.mark.parametrize("downlink_hz", [2e3, 2e4])
def test_a_round_is_planned_with_what_each_client_holds(
    held: tuple[int, ...], downlink_hz: float, tmp_path: Path
) -> None:
    """Every combination of rank and absence, priced by its definition."""
    costs = tmp_path / "costs.json"
    some = {"cost": 0.3}
    costs.write_text(json.dumps({
        "format": "airtune-costs/1", "rank": {"4": {"cost": 0.0}, "1": {"cost": 0.15}},
        "bits": {"16": {"cost": 0.0}}, "steps": {"1": {"cost": 0.0}}, "absent": {"cost": 0.5},
        "pruning": {"0.6": some}, "provenance": {}}))  # fmt: skip
    scenario = tiny(
        "planning.method=exact", 'planning.knobs=["bandwidth","rank","absence"]',
        f"planning.costs={costs}", "planning.rank_values=[1]", "planning.kappa=0.8",
        "devices.0.count=1", "devices.1.count=1", f"cell.downlink_bandwidth_hz={downlink_hz}",
        "cell.uplink_bandwidth_hz=5e5",
    )  # fmt: skip
    at_start = situation_of_scenario(scenario)
    needs = [
        needed_bits(scenario, at_start.shape, [mode], 0.0, ranks)
        for mode, ranks in zip(at_start.modes, held, strict=True)
    ]
    bits, whole = (np.concatenate(parts) for parts in zip(*needs, strict=True))
    link = replace(at_start.link, needed_bits=bits, needs_whole=whole, held_ranks=np.array(held))
    situation = replace(at_start, link=link)
    made = plan_round(scenario, situation)
    best = np.inf
    offered = [
        [*modes_offered(scenario, mode, scenario.planning.turned), None] for mode in situation.modes
    ]
    for choice in itertools.product(*offered):
        if any(mode is not None for mode in choice):
            best = min(best, objective(scenario, situation, choice, held))
    assert made.plan.objective_s == pytest.approx(best, rel=1e-5)
    assert made.plan.lower_bound_s is not None
    assert made.plan.lower_bound_s <= best * (1 + 1e-9)
    assert made.plan.gap is not None
    assert made.plan.gap <= 1e-5


def objective(scenario: Scenario, at: Situation, modes: tuple, held: tuple[int, ...]) -> float:
    """Return J of the modes, each waiting for the change or for the whole adapter behind it."""
    listeners = [k for k, mode in enumerate(modes) if mode is not None]
    rate = float(at.link.air.downlink_rate_bps[listeners].min())
    sizes = full_sizes(at.shape)

    def sent(mode, bits: int, scale: int) -> float:
        return payload_bits(
            at.shape, sizes, replace(mode, bits_per_value=bits, bits_per_scale=scale)
        )

    first = max((sent(modes[k], 4, 32) for k in listeners if modes[k].rank <= held[k]), default=0.0)
    fixed, bits, losses = [], [], [1 - 0.5 * 0.85] * len(modes)
    prices = prices_of(scenario)
    for k in listeners:
        mode = modes[k]
        count = affine_coefficients(at.shape, at.loads[k].steps, mode, max_pruning=0.6)
        wait = sent(mode, 4, 32) if mode.rank <= held[k] else first + sent(mode, 16, 0)
        fixed.append(count.flops(0.0) / at.profiles[k].effective_flops + wait / rate)
        bits.append(count.payload_bits(0.0))
        losses[k] = prices.of(mode, at.modes[k], 1.0)
    zero = np.zeros(len(listeners))
    asked = replace(
        at.problem.of_clients(np.array(listeners), kappa=0.0), downlink_s=zero,
        compute_fixed_s=np.array(fixed), compute_full_s=zero, payload_fixed_bits=np.array(bits),
        payload_full_bits=zero, max_pruning=zero,
    )  # fmt: skip
    latency = plan(asked, "bandwidth-only", bound=False).round_latency_s
    return latency / (1 - scenario.planning.kappa * float(at.problem.weight @ np.array(losses)))


def test_refusals_say_what_it_does_not_go_with() -> None:
    with pytest.raises(InputError, match=r"'flora' cannot go with .*downlink_change_bits = 4"):
        at.open_cell(tiny("aggregation.rule=flora"))
