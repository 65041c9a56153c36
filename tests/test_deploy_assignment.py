"""The whole assignment on devices: their record is the simulated one but for measured times."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from airtune.adapters.few_bits import rounded_change
from airtune.deploy.codec import layout_of, update_arrays, updated_adapter
from airtune.deploy.device import Device
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.introductions import Known, check_introduction, planned_steps
from airtune.deploy.pacing import Unpaced
from airtune.deploy.presence import deciding_among
from airtune.deploy.protocol import (
    Hello,
    Introduction,
    ProtocolError,
    Update,
    agreement,
    pack,
    unpack,
)
from airtune.models.devices import profile_of
from airtune.planning.inputs import ClientLoad, cost_line, modes_of
from airtune.record import Record
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from assigned import mode
from fake_mailbox import FakeMailbox

KINDS = (
    "devices=[{profile='jetson-orin-nano', distance_m=30.0}, {profile='raspberry-pi-5', "
    "distance_m=60.0, lora_rank=2}, {profile='intel-n100', distance_m=190.0}]"
)
EQUAL = KINDS.replace(", lora_rank=2", "")
SMALL = [
    "rounds=2",
    "task.train_examples=96",
    "task.eval_examples=16",
    "training.local_steps=2",
    "aggregation.payload_bits_per_value=32",
    "pruning.max_pruning=0.5",
]
MEASURED = {
    "downlink_s", "compute_s", "upload_s", "total_s", "engine_s", "wall_s", "elapsed_s",
    "round_latency_s", "rate_bps",
    "energy_j", "compute_j", "transmit_j", "receive_j", "wait_j",
}  # fmt: skip
SETTINGS: dict[str, list[str]] = {
    "pruning and unequal ranks": [KINDS],
    "four bits": [KINDS, "aggregation.uplink_change_bits=4"],
    "two bits, moments kept": [
        EQUAL, "aggregation.uplink_change_bits=2", "training.keep_optimizer=true",
    ],
    "measured costs of pruning": [KINDS, "pruning.cost=measured"],
    "rank, bits and steps by the plan": [
        EQUAL.replace("'raspberry-pi-5'", "'raspberry-pi-5', utilisation=0.01"),
        'planning.knobs=["bandwidth","steps","rank","bits"]', "cell.uplink_bandwidth_hz=1e6",
        "training.local_steps=4",
    ],
    "B alone": [EQUAL, "aggregation.rule=ffa-lora"],
    "changes downwards in four bits": [
        KINDS, "aggregation.downlink_change_bits=4", "rounds=3", "cell.downlink_bandwidth_hz=2e3",
    ],
    "few bits both ways, sitting out": [
        EQUAL, "aggregation.downlink_change_bits=2", "aggregation.uplink_change_bits=4",
        "participation.rule=in-turn", "planning.method=exact", "rounds=4",
        'planning.knobs=["bandwidth","absence"]',
    ],
    "changes of B alone": [
        EQUAL, "aggregation.rule=ffa-lora", "aggregation.downlink_change_bits=8",
    ],
    "fewer steps": [
        EQUAL.replace("'raspberry-pi-5'", "'raspberry-pi-5', utilisation=0.01"),
        "participation.rule=partial", "training.local_steps=4", "cell.uplink_bandwidth_hz=1e8",
    ],
    "sitting out": [EQUAL, "participation.rule=deadline", "participation.left_out_cost=0.05"],
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def as_planned(scenario: Scenario, alone: Record, mailbox: FakeMailbox) -> None:
    """Have each device say the speed that the scenario names, so that both runs plan alike."""
    for k, name in enumerate(scenario.client_names):
        speed = profile_of(scenario.client_devices[k]).effective_flops

        def introduced(body: bytes, speed: float = speed) -> bytes:
            own, _ = unpack(body, Introduction)
            return pack(own.model_copy(update={"effective_flops": speed}))

        mailbox.tamper[name, "hello"] = introduced
        for record in alone.rounds:

            def timed(body: bytes, counted_s: float = record.clients[k].compute_s) -> bytes:
                fields, arrays = unpack(body, Update)
                return pack(fields.model_copy(update={"compute_s": counted_s}), arrays)

            mailbox.tamper[name, str(record.round)] = timed


def comparable(record: Record) -> list[dict[str, Any]]:
    rounds = []
    for line in record.rounds:
        values = {k: v for k, v in dataclasses.asdict(line).items() if k not in MEASURED}
        values["clients"] = [
            {k: v for k, v in dataclasses.asdict(client).items() if k not in MEASURED}
            for client in line.clients
        ]
        rounds.append(values)
    return rounds


def same(ours: Any, theirs: Any, where: str = "") -> None:
    """Compare two records; numbers to rounding, because a speed is divided out and in again."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            same(a, b, f"{where}[{i}]")
    elif isinstance(ours, float) and theirs is not None:
        assert ours == pytest.approx(theirs, rel=1e-9), where
    else:
        assert ours == theirs, where


@pytest.mark.parametrize("case", SETTINGS)
def test_the_devices_record_is_the_simulated_one(case: str, tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, *SETTINGS[case]])
    alone = run(scenario, out=tmp_path / "alone")
    names = scenario.client_names
    devices = {name: Device(scenario, name, Unpaced(), tmp_path) for name in names}
    mailbox = FakeMailbox(devices)
    as_planned(scenario, alone, mailbox)
    engine = FlowerEngine(
        scenario, mailbox, Conditions(devices=len(names), wait_s=30.0), run="run-1",
        say=lambda line: None,
    )  # fmt: skip
    decide = deciding_among(engine.present, engine.holders)
    on_air = run(scenario, out=tmp_path / "devices", engine=engine, decide=decide)
    same(comparable(on_air), comparable(alone))
    statuses = {client.status for line in on_air.rounds for client in line.clients}
    assert statuses <= {"ok", "sat out"}
    if case == "sitting out":
        assert "sat out" in statuses
    if case == "rank, bits and steps by the plan":
        work = [c for line in on_air.rounds for c in line.clients if c.status == "ok"]
        assert min(client.rank for client in work) < scenario.training.lora_rank
        assert min(client.bits_per_value for client in work) < 32
        assert min(client.local_steps for client in work) < 4
    if case == "fewer steps":
        steps = {client.local_steps for line in on_air.rounds for client in line.clients}
        assert steps > {4}


def test_the_largest_cut_that_a_device_announces_is_one_of_the_model(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, KINDS, "pruning.cost=measured"])
    client = scenario.client_names[1]
    device = Device(scenario, client, Unpaced(), tmp_path)
    hello = Hello(version="0", run="run-1", scenario=agreement(scenario))
    own, _ = unpack(device.handle(pack(hello)), Introduction)
    labels = frozenset(own.labels)
    known = Known(scenario, device._worker.shape, labels)
    check_introduction(own, known, 1, waited_s=1e6)
    assert own.most_pruned is not None
    (channels, groups), *rest = own.most_pruned
    whole = [(known.shape.mlp_channels, known.shape.kv_heads)] * known.shape.blocks
    for bad, said in (
        (None, "most_pruned is missing"),
        (rest, "not a submodel"),
        ([(channels, known.shape.kv_heads + 1), *rest], "not a submodel"),
        ([(known.shape.mlp_channels + 1, groups), *rest], "not a submodel"),
        (whole, "leaves out 0.000 of the model; the scenario's largest is 0.5"),
    ):
        with pytest.raises(ProtocolError, match=said):
            check_introduction(own.model_copy(update={"most_pruned": bad}), known, 1, waited_s=1e6)
    linear = replace(known, scenario=load_scenario("tiny", [*SMALL, KINDS]))
    plain = own.model_copy(update={"pruning_cost": None})
    with pytest.raises(ProtocolError, match="most_pruned is given"):
        check_introduction(plain, linear, 1, waited_s=1e6)


def test_a_devices_memory_is_held_against_the_model_as_it_is_quantised(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, KINDS, "pruning.max_pruning=0.0"])
    quantised = load_scenario(
        "tiny", [*SMALL, KINDS, "pruning.max_pruning=0.0", 'model.quantize="int8"']
    )
    device = Device(scenario, scenario.client_names[1], Unpaced(), tmp_path)
    hello = Hello(version="0", run="run-1", scenario=agreement(scenario))
    own, _ = unpack(device.handle(pack(hello)), Introduction)
    known = Known(scenario, device._worker.shape, frozenset(own.labels))
    load = ClientLoad(planned_steps(own.next_steps, scenario), own.examples)
    lines = [cost_line(one, known.shape, load, modes_of(one)[1]) for one in (scenario, quantised)]
    ends = [line.memory_fixed_bytes + line.memory_full_bytes for line in lines]
    assert ends[1] < ends[0]
    between = own.model_copy(update={"memory_bytes": sum(ends) / 2})
    with pytest.raises(ProtocolError, match="does not hold the model"):
        check_introduction(between, known, 1, waited_s=1e6)
    check_introduction(between, replace(known, scenario=quantised), 1, waited_s=1e6)


def changes(seed: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"x.lora_A.weight": (3, 7), "x.lora_B.weight": (5, 3)}
    before = {n: torch.randn(s, generator=drawn) for n, s in shapes.items()}
    after = {n: v + 0.1 * torch.randn(v.shape, generator=drawn) for n, v in before.items()}
    return before, after


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_few_bits_arrive_as_the_simulation_has_them(bits: int) -> None:
    before, after = changes()
    how = mode(3, bits=bits, scale=32)
    sent = update_arrays(before, after, how, seed=5)
    assert sent["codes"].nbytes == -(-36 * bits // 8)
    there = updated_adapter(sent, before, how)
    expected = rounded_change(before, after, bits, seed=5)
    assert all(torch.equal(there[name], expected[name]) for name in expected)
    unchanged = update_arrays(before, before, how, seed=5)
    assert all(torch.equal(updated_adapter(unchanged, before, how)[n], before[n]) for n in before)


def test_codes_that_are_none_are_refused() -> None:
    before, after = changes()
    how = mode(3, bits=4, scale=32)
    sent = update_arrays(before, after, how, seed=5)
    for bad, said in (
        ({"codes": sent["codes"][:-1]}, "36 codes of 4 bits"),
        ({"codes": np.full_like(sent["codes"], 255)}, "a code above 7"),
        ({"scales": sent["scales"][:-1]}, "6 scales"),
        ({"scales": -sent["scales"]}, "below 0"),
        ({"scales": sent["scales"] * np.float32(np.inf)}, "not finite"),
        ({"scales": sent["scales"].astype(np.float16)}, "float32"),
        ({"codes": None}, "36 codes"),
    ):
        arrays: dict[str, Any] = {k: v for k, v in {**sent, **bad}.items() if v is not None}
        with pytest.raises(ProtocolError, match=said):
            updated_adapter(arrays, before, how)
    odd = {"x.lora_A.weight": torch.zeros(1, 3)}
    padded = update_arrays(odd, odd, mode(1, bits=2, scale=32), seed=0)
    padded["codes"][-1] |= 1
    with pytest.raises(ProtocolError, match="after the last value"):
        updated_adapter(padded, odd, mode(1, bits=2, scale=32))
    assert layout_of(odd) == {"x.lora_A.weight": (1, 3)}
