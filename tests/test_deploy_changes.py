"""A broadcast of changes on devices: who gets the change, who the whole, and whose word counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from airtune.adapters.few_bits import nearest_change
from airtune.deploy.codec import adapter_sha256, change_arrays, changed_adapter
from airtune.deploy.device import Device
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.held import Held
from airtune.deploy.pacing import Unpaced
from airtune.deploy.presence import deciding_among
from airtune.deploy.protocol import (
    Base,
    Job,
    ProtocolError,
    Refusal,
    Update,
    kind_of,
    pack,
    unpack,
)
from airtune.record import Record
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientJob
from assigned import assignment, mode
from fake_mailbox import FakeMailbox

SMALL = [
    "devices=[{profile='jetson-orin-nano', distance_m=30.0}, {profile='raspberry-pi-5', "
    "distance_m=60.0}]",
    "rounds=4", "planning.method=none",
    "task.train_examples=96", "task.eval_examples=16", "training.local_steps=1",
    "aggregation.downlink_change_bits=4",
]  # fmt: skip
FIRST, SECOND = 0, 1


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watching(FakeMailbox):
    """Keeps the jobs that were sent; `before` is called with each round before it is sent."""

    def __init__(self, scenario: Scenario, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder
        super().__init__({name: self.fresh(name) for name in scenario.client_names})
        self.jobs: dict[tuple[int, int], tuple[Job, int]] = {}
        self.before: dict[int, Callable[[], None]] = {}

    def fresh(self, name: str) -> Device:
        return Device(self.scenario, name, Unpaced(), self.folder)

    def send(self, bodies: Mapping[int, bytes], group: str) -> dict[str, int]:
        if group.isdigit() and (act := self.before.pop(int(group), None)) is not None:
            act()
        for node, body in bodies.items():
            if kind_of(body) == "job":
                fields, arrays = unpack(body, Job)
                size = sum(array.nbytes for array in arrays.values())
                self.jobs[fields.round, node] = (fields, size)
        return super().send(bodies, group)

    def wholes(self) -> set[tuple[int, int]]:
        """Return the rounds and clients in which the whole adapter was sent."""
        return {key for key, (fields, _) in self.jobs.items() if fields.base is None}


def scenario_of(*changes: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *changes])


def on_devices(mailbox: Watching, out: Path, *, resume: bool = False) -> Record:
    engine = FlowerEngine(
        mailbox.scenario, mailbox, Conditions(devices=1, wait_s=5.0), run=out.name,
        say=lambda line: None,
    )  # fmt: skip
    decide = deciding_among(engine.present, engine.holders)
    return run(mailbox.scenario, out=out, engine=engine, decide=decide, resume=resume)


def statuses(record: Record, round: int) -> list[str]:
    return [client.status for client in record.rounds[round - 1].clients]


@pytest.mark.parametrize("whole_bits", [16, 32])
def test_those_who_hold_the_last_broadcast_are_sent_its_change(
    whole_bits: int, tmp_path: Path
) -> None:
    scenario = scenario_of(f"aggregation.payload_bits_per_value={whole_bits}")
    mailbox = Watching(scenario, tmp_path)
    record = on_devices(mailbox, tmp_path / "run")
    assert all(statuses(record, round) == ["ok", "ok"] for round in (1, 2, 3, 4))
    assert mailbox.wholes() == {(1, FIRST), (1, SECOND)}
    whole, change = mailbox.jobs[1, FIRST][1], mailbox.jobs[2, FIRST][1]
    assert change < 0.6 * whole
    # The record has what was sent; beside the values it counts the same for both.
    counted = [record.rounds[k].clients[FIRST].downlink_bits / 8 for k in (0, 1)]
    beside = [bits - size for bits, size in zip(counted, (whole, change), strict=True)]
    assert beside[1] == pytest.approx(beside[0], abs=1)
    assert beside[0] < 200


def test_a_device_without_the_base_gets_the_whole_adapter(tmp_path: Path) -> None:
    mailbox = Watching(scenario_of(), tmp_path)
    name = mailbox.scenario.client_names[SECOND]

    def away() -> None:
        mailbox.away.add(name)

    mailbox.before[2] = away  # after it was asked: its answer still comes, for round 2
    mailbox.before[3] = lambda: mailbox.away.discard(name)
    record = on_devices(mailbox, tmp_path / "run")
    assert (3, SECOND) not in mailbox.jobs
    assert statuses(record, 3) == ["ok", "failed: not connected"]
    assert statuses(record, 4) == ["ok", "ok"]
    assert mailbox.wholes() == {(1, FIRST), (1, SECOND), (4, SECOND)}
    change, whole = (c.downlink_bits for c in record.rounds[3].clients)
    assert whole > 2 * change  # it waited for the change, and then for the whole


def test_a_restarted_device_says_so_and_gets_the_whole_adapter(tmp_path: Path) -> None:
    mailbox = Watching(scenario_of(), tmp_path)
    name = mailbox.scenario.client_names[SECOND]

    def restart() -> None:
        mailbox.devices[name] = mailbox.fresh(name)

    mailbox.before[2] = restart
    record = on_devices(mailbox, tmp_path / "run")
    assert statuses(record, 2)[SECOND].startswith("failed: refused: run run has not introduced")
    assert statuses(record, 3) == ["ok", "ok"]
    assert mailbox.wholes() == {(1, FIRST), (1, SECOND), (3, SECOND)}


def test_a_device_that_lost_the_base_alone_refuses_the_change(tmp_path: Path) -> None:
    mailbox = Watching(scenario_of(), tmp_path)
    device = mailbox.devices[mailbox.scenario.client_names[SECOND]]

    def forget() -> None:
        device._held = None

    mailbox.before[2] = forget
    record = on_devices(mailbox, tmp_path / "run")
    assert "does not hold the adapter of round 1" in statuses(record, 2)[SECOND]
    assert statuses(record, 3) == ["ok", "ok"]
    assert (3, SECOND) in mailbox.wholes()


@pytest.mark.parametrize("claim", ["0" * 64, None])
def test_what_a_device_says_it_holds_is_checked(claim: str | None, tmp_path: Path) -> None:
    mailbox = Watching(scenario_of("rounds=3"), tmp_path)
    name = mailbox.scenario.client_names[SECOND]

    def lying(body: bytes) -> bytes:
        fields, arrays = unpack(body, Update)
        return pack(fields.model_copy(update={"held_sha256": claim}), arrays)

    mailbox.tamper[name, "2"] = lying
    record = on_devices(mailbox, tmp_path / "run")
    said = "failed: rejected: it did not begin with the adapter that it was sent"
    assert statuses(record, 2) == ["ok", said]
    assert (3, SECOND) in mailbox.wholes()
    assert statuses(record, 3) == ["ok", "ok"]


def test_a_hash_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    whole = load_scenario("tiny", [*SMALL[:-1], "rounds=1"])
    mailbox = Watching(whole, tmp_path)

    def claiming(body: bytes) -> bytes:
        fields, arrays = unpack(body, Update)
        return pack(fields.model_copy(update={"held_sha256": "0" * 64}), arrays)

    mailbox.tamper[whole.client_names[SECOND], "1"] = claiming
    record = on_devices(mailbox, tmp_path / "run")
    assert "did not begin" in statuses(record, 1)[SECOND]


def test_a_resumed_run_sends_the_whole_adapter_first(tmp_path: Path) -> None:
    scenario = scenario_of("rounds=2")
    on_devices(Watching(scenario, tmp_path), tmp_path / "run")
    mailbox = Watching(scenario_of("rounds=4"), tmp_path)
    record = on_devices(mailbox, tmp_path / "run", resume=True)
    assert mailbox.wholes() == {(3, FIRST), (3, SECOND)}
    bits = [line.clients[FIRST].downlink_bits for line in record.rounds]
    assert bits[0] == bits[2]
    assert bits[1] == bits[3] < bits[0]


def adapters(rank: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(rank)
    shapes = {"x.lora_A.weight": (rank, 7), "x.lora_B.weight": (5, rank)}
    held = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    return held, {n: v + 0.1 * torch.randn(v.shape, generator=drawn) for n, v in held.items()}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rank", [1, 3])
def test_both_ends_have_the_same_adapter_to_the_last_bit(bits: int, rank: int) -> None:
    held, server = adapters(3)
    change = nearest_change(held, server, bits)
    section = scenario_of(f"aggregation.downlink_change_bits={bits}")
    known = Held(section)
    how = mode(3)
    first = ClientJob(1, assignment(0, how), held)
    known.keep(first, known.sending(replace(first, adapter=held)))
    job = ClientJob(2, assignment(0, mode(rank)), change.onto(held), change=change.leading(rank))
    sending = known.sending(job)
    assert isinstance(sending.base, Base)
    assert sending.base.round == 1
    # The whole adapter went down in 16 bits; the change goes onto what came of that.
    begins = known.sending(first).began
    leading = {
        "x.lora_A.weight": begins["x.lora_A.weight"][:rank],
        "x.lora_B.weight": begins["x.lora_B.weight"][:, :rank],
    }
    assert sending.base.sha256 == adapter_sha256(leading)
    there = changed_adapter(sending.arrays, leading, bits)
    assert adapter_sha256(there) == sending.sha256 == adapter_sha256(sending.began)
    assert known.holders(2) == frozenset({0})
    assert known.holders(3) == frozenset()
    # A round in between, or more ranks than it holds: the whole adapter.
    known.keep(job, sending)
    assert known.sending(replace(job, round=4)).base is None
    wider = replace(job, round=3, assignment=assignment(0, mode(3)), change=change)
    assert (known.sending(wider).base is None) == (rank < 3)


def test_a_change_that_is_none_is_refused(tmp_path: Path) -> None:
    held, server = adapters(3)
    sent = change_arrays(nearest_change(held, server, 4))
    with pytest.raises(ProtocolError, match="36 codes of 4 bits"):
        changed_adapter({**sent, "codes": sent["codes"][1:]}, held, 4)
    with pytest.raises(ProtocolError, match="finite"):
        changed_adapter({**sent, "scales": sent["scales"] * np.float32(np.nan)}, held, 4)
    scenario = scenario_of()
    device = Device(scenario, scenario.client_names[FIRST], Unpaced(), tmp_path)
    device._run = "run"
    told = assignment(0, mode(scenario.training.lora_rank))
    fields = {
        "run": "run", "round": 2, "pruning": 0.0, "local_steps": 1, "rank": told.mode.rank,
        "bits_per_value": 16, "bits_per_scale": 0, "freezes_a": False, "bandwidth_hz": 1.0,
        "uplink_bps": 1.0, "downlink_bps": 1.0, "downlink_bits": 1.0,
        "base": Base(round=1, sha256="0" * 64),
    }  # fmt: skip
    for extra, said in (({}, "without its bits"), ({"change_bits": 4}, "does not hold")):
        body = device.handle(pack(Job(**fields, **extra), sent))
        assert said in unpack(body, Refusal)[0].reason
