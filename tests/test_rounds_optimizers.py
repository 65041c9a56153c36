"""Server optimisers, FedProx and SCAFFOLD in the round loop: what they change and cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import airtune as at
from airtune.adapters.names import Adapter
from airtune.errors import InputError
from airtune.merging.rules import check_deployable, rule_of
from airtune.record import RoundRecord
from airtune.rounds import State, run
from airtune.rounds.control import Controls
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario, load_scenario

SMALL = ["rounds=2", "task.eval_examples=8", "training.local_steps=2", "planning.method=none"]
SCAFFOLD = ["training.scaffold=true", "training.optimizer=sgd", "training.learning_rate=0.5"]


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *overrides])


pytestmark = pytest.mark.usefixtures("one_thread")


def after(scenario: Scenario, rounds: int = 1) -> tuple[State, RoundRecord]:
    with at.open_cell(scenario) as cell:
        state = at.begin(cell)
        for _ in range(rounds):
            state, record = at.step(cell, state)
    return state, record


@pytest.fixture(scope="module")
def plain() -> tuple[State, RoundRecord]:
    return after(tiny(), 2)


def same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def far(one: Adapter, other: Adapter) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5


def test_no_momentum_and_a_rate_of_1_are_the_plain_rounds(
    plain: tuple[State, RoundRecord],
) -> None:
    server = ["aggregation.server_optimizer=momentum", "aggregation.server_momentum=0.0"]
    state, record = after(tiny(*server), 2)
    assert same(state.adapter, plain[0].adapter)
    assert record.eval_loss == plain[1].eval_loss


def test_mu_holds_clients_to_the_adapter_and_costs_what_a_plain_round_costs(
    plain: tuple[State, RoundRecord],
) -> None:
    with at.open_cell(tiny()) as cell:
        start = at.begin(cell).adapter
    free = after(tiny())[0].adapter
    held, record = after(tiny("training.proximal_mu=1000.0"))
    assert far(held.adapter, start) < 0.9 * far(free, start)
    assert record.flops == after(tiny())[1].flops
    loose, _ = after(tiny("training.proximal_mu=0.0"), 2)
    assert same(loose.adapter, plain[0].adapter)


class Stopped(Exception):
    pass


class Stopping(Observer):
    def round_ended(self, record: RoundRecord) -> None:
        raise Stopped


@pytest.mark.parametrize(
    "settings",
    [
        ["aggregation.server_optimizer=adam"],
        ["aggregation.server_optimizer=momentum", "devices.1.lora_rank=2"],
        ["training.scaffold=true", "planning.method=exact", "devices.1.lora_rank=2"],
    ],
    ids=["adam", "momentum", "scaffold"],
)
def test_moments_and_control_variates_are_there_again_on_resume(
    settings: list[str], tmp_path: Path
) -> None:
    whole = run(tiny(*settings, "rounds=3"), out=tmp_path / "whole")
    for resume in (False, True):
        with pytest.raises(Stopped):
            run(
                tiny(*settings, "rounds=3"),
                out=tmp_path / "cut",
                resume=resume,
                observer=Stopping(),
            )
    resumed = run(tiny(*settings, "rounds=3"), out=tmp_path / "cut", resume=True)
    assert [r.eval_loss for r in resumed.rounds] == [r.eval_loss for r in whole.rounds]


def test_the_first_round_of_scaffold_is_plain_sgd_and_every_round_sends_twice_as_much() -> None:
    sgd = SCAFFOLD[1:]
    state, record = after(tiny(*sgd))
    with_control, billed = after(tiny(*SCAFFOLD))
    assert same(with_control.adapter, state.adapter)
    sites = (load_scenario("tiny"), state.adapter)
    values = sum(value.numel() for value in sites[1].values())
    assert [c.uplink_bits for c in billed.clients] == [
        c.uplink_bits + 16 * values for c in record.clients
    ]
    assert billed.downlink_bits == record.downlink_bits + 16 * values
    assert billed.predicted_latency_s == pytest.approx(billed.round_latency_s)
    assert billed.flops == record.flops
    second, _ = after(tiny(*SCAFFOLD), 2)
    assert not same(second.adapter, after(tiny(*sgd), 2)[0].adapter)


def test_the_server_has_the_weighted_sum_of_the_clients_variates_also_of_submodels() -> None:
    unequal = ["partition.kind=quantity", "partition.alpha=1.0"]
    scenario = tiny(*SCAFFOLD, *unequal, "planning.method=uniform", "planning.kappa=0.1")
    with at.open_cell(scenario) as cell:
        state = at.begin(cell)
        for _ in range(2):
            state, record = at.step(cell, state)
        examples = [client.examples for client in cell.federation.clients]
    assert any(client.pruning for client in record.clients)
    assert len(set(examples)) > 1
    controls = state.controls
    assert sorted(controls.clients) == [0, 1, 2, 3]
    for name, value in controls.server.items():
        expected = sum(
            n * controls.clients[k][name].double() for k, n in enumerate(examples)
        ) / sum(examples)
        assert torch.allclose(value.double(), expected, atol=1e-6)
    assert max(float(value.abs().max()) for value in controls.server.values()) > 1e-3


def test_a_client_is_told_the_servers_variate_less_its_own() -> None:
    name = "block.a.lora_A.weight"
    adapter = {name: torch.zeros(1, 2)}
    controls = Controls({name: torch.tensor([[3.0, 1.0]])}, {0: {name: torch.tensor([[1.0, 2.0]])}})
    assert controls.correction(0, adapter)[name].tolist() == [[2.0, -1.0]]
    assert controls.correction(1, adapter)[name].tolist() == [[3.0, 1.0]]


@pytest.mark.parametrize("rule", ["flora", "flexlora"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("aggregation.server_optimizer", "adam"), ("training.scaffold", "true")],
)
def test_rules_with_new_factors_every_round_refuse_both(rule: str, key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"{key} = .* cannot go with aggregation.rule = '{rule}'"):
        rule_of(tiny(f"{key}={value}", f"aggregation.rule={rule}"))


def test_real_devices_refuse_what_no_message_carries() -> None:
    with pytest.raises(InputError, match=r"training.scaffold = true runs in simulation only"):
        check_deployable(tiny("training.scaffold=true"))
    with pytest.raises(InputError, match=r"training.optimizer = 'sgd' runs in simulation only"):
        check_deployable(tiny("training.optimizer=sgd"))
