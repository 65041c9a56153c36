"""The round loop on devices without Flower: devices in this process, behind a stand-in mailbox."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from airtune.deploy.checks import norm_bound
from airtune.deploy.codec import (
    adapter_arrays,
    adapter_of,
    layout_of,
    structure_array,
    structure_of,
)
from airtune.deploy.device import Device
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.pacing import Unpaced
from airtune.deploy.presence import deciding_among
from airtune.deploy.privacy import parse_privacy, read_ledger
from airtune.deploy.protocol import (
    PROTOCOL,
    Fields,
    Hello,
    Introduction,
    ProtocolError,
    Refusal,
    Update,
    agreement,
    job_fields,
    kind_of,
    pack,
    unpack,
)
from airtune.errors import InputError, RunError
from airtune.models.structure import Structure
from airtune.record import Record
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientJob
from airtune.training.worker import Worker
from assigned import assignment, mode
from fake_mailbox import FakeMailbox, Tamper

SMALL = [
    "rounds=2",
    "devices.0.count=1",
    'planning.method="none"',
    "task.train_examples=96",
    "task.eval_examples=16",
    "training.local_steps=2",
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("tiny", [*SMALL, "aggregation.payload_bits_per_value=32"])


@pytest.fixture(scope="module")
def devices(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Device]:
    folder = tmp_path_factory.mktemp("devices")
    return {name: Device(scenario, name, Unpaced(), folder) for name in scenario.client_names}


def on_devices(
    scenario: Scenario, mailbox: FakeMailbox, out: Path, conditions: Conditions | None = None
) -> Record:
    engine = FlowerEngine(
        scenario,
        mailbox,
        conditions or Conditions(devices=len(mailbox.devices), wait_s=5.0),
        run="run-1",
        timings=out.with_suffix(".timings"),
        say=lambda line: None,
    )
    return run(scenario, out=out, engine=engine, decide=deciding_among(engine.present))


def statuses(record: Record, round: int) -> dict[str, str]:
    return {client.name: client.status for client in record.rounds[round - 1].clients}


def test_devices_learn_what_the_simulation_learns(
    scenario: Scenario, devices: dict[str, Device], tmp_path: Path
) -> None:
    on_air = on_devices(scenario, FakeMailbox(devices), tmp_path / "devices")
    alone = run(scenario, out=tmp_path / "alone")
    for real, counted in zip(on_air.rounds, alone.rounds, strict=True):
        # Without pruning the plan does not matter, and 32 bits lose nothing.
        assert real.eval_loss == counted.eval_loss
        assert real.train_loss == counted.train_loss
        assert real.uplink_bits == counted.uplink_bits
        for ours, theirs in zip(real.clients, counted.clients, strict=True):
            assert ours.status == theirs.status == "ok"
            assert ours.flops == theirs.flops
            assert ours.engine_s is not None
            assert theirs.engine_s is None
            # No wire log here: transfers count as planned, not as 0 s and 0 J.
            assert (ours.upload_s, ours.rate_bps) == pytest.approx(
                (theirs.upload_s, theirs.rate_bps)
            )
            assert ours.transmit_j == theirs.transmit_j
            assert ours.downlink_s == theirs.downlink_s > 0
    assert (tmp_path / "devices" / "adapter" / "adapter_model.safetensors").is_file()
    assert len((tmp_path / "devices.timings").read_text().splitlines()) == 6


def changed(change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> Tamper:
    """Return what a device that lies would send: its update with some field or array changed."""

    def tamper(body: bytes) -> bytes:
        fields, arrays = unpack(body, Update)
        values, loose = fields.model_dump(), dict(arrays)
        change(values, loose)
        return pack(Update.model_validate(values), loose)

    return tamper


def put(array: np.ndarray, value: float) -> np.ndarray:
    copy = array.copy()
    copy.flat[0] = value
    return copy


RUBBISH: dict[str, tuple[Tamper, str]] = {
    "not a message": (lambda body: b"\x80\x04pickle" + body, "rejected: its header"),
    "nan": (changed(lambda f, a: a.update(values=put(a["values"], np.nan))), "not finite"),
    "inf": (changed(lambda f, a: a.update(values=put(a["values"], np.inf))), "not finite"),
    "far": (changed(lambda f, a: a.update(values=a["values"] + 100)), "it moved by"),
    "fewer": (changed(lambda f, a: a.update(values=a["values"][:-1])), "wrong shape"),
    "square": (changed(lambda f, a: a.update(values=a["values"].reshape(2, -1))), "wrong shape"),
    "no values": (changed(lambda f, a: a.pop("values").size), "values were expected, not none"),
    "bytes": (changed(lambda f, a: a.update(values=a["values"].view("u1"))), "wrong shape"),
    "examples": (changed(lambda f, a: f.update(examples=10**6)), "were announced"),
    "round": (changed(lambda f, a: f.update(round=7)), "an answer for run run-1, round 7"),
    "another device": (
        changed(lambda f, a: f.update(client="intel-n100-1")),
        "client intel-n100-1",
    ),
    "no loss": (changed(lambda f, a: f.update(train_loss=None)), "no training loss"),
    "no bitmap": (changed(lambda f, a: a.pop("kept").size), "bitmap of kept units"),
    "bitmap": (changed(lambda f, a: a.update(kept=~a["kept"])), "rejected"),
    "dtype": (
        lambda body: safetensors.numpy.save(
            {"adapter/a": np.zeros(2)},
            metadata={"airtune": unpack(body, Update)[0].model_dump_json()},
        ),
        "float64",
    ),
    "exception": (lambda body: b"error: its app raised", "error: its app raised"),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_left_out_and_recorded(
    scenario: Scenario, devices: dict[str, Device], tmp_path: Path, kind: str
) -> None:
    tamper, said = RUBBISH[kind]
    victim = scenario.client_names[0]
    mailbox = FakeMailbox(devices)
    mailbox.tamper[(victim, "1")] = tamper
    one_round = scenario.model_copy(update={"rounds": 1})
    record = on_devices(one_round, mailbox, tmp_path / "run")
    found = statuses(record, 1)
    assert said in found.pop(victim)
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(devices=3, wait_s=5.0, slack=1.0, engine_s=0.2),
        # Whatever the plan says, no round waits longer than this.
        Conditions(devices=3, wait_s=5.0, slack=1e9, engine_s=1e9, longest_s=0.3),
    ],
)
def test_a_late_device_is_not_waited_for_and_may_come_back(
    conditions: Conditions, scenario: Scenario, devices: dict[str, Device], tmp_path: Path
) -> None:
    victim = scenario.client_names[1]
    mailbox = FakeMailbox(devices)
    mailbox.tamper[(victim, "1")] = lambda body: None
    record = on_devices(scenario, mailbox, tmp_path / "run", conditions)
    assert statuses(record, 1)[victim].startswith("failed: late: no answer within")
    assert statuses(record, 2)[victim] == "ok"


def test_a_device_that_goes_and_returns(
    scenario: Scenario, devices: dict[str, Device], tmp_path: Path
) -> None:
    victim = scenario.client_names[2]
    mailbox = FakeMailbox(devices)
    mailbox.away.add(victim)

    def back(body: bytes) -> bytes:
        mailbox.away.clear()
        return body

    mailbox.tamper[(scenario.client_names[0], "1")] = back
    conditions = Conditions(devices=2, wait_s=0.2)
    record = on_devices(scenario, mailbox, tmp_path / "run", conditions)
    assert statuses(record, 1)[victim] == "failed: not connected"
    assert statuses(record, 2)[victim] == "ok"


def test_fewer_devices_than_asked_for(
    scenario: Scenario, devices: dict[str, Device], tmp_path: Path
) -> None:
    mailbox = FakeMailbox(devices)
    mailbox.away.update(scenario.client_names[1:])
    conditions = Conditions(devices=3, wait_s=0.2)
    with pytest.raises(RunError, match=r"1 of 3 devices ready within 0.2 s; missing: intel"):
        on_devices(scenario, mailbox, tmp_path / "one", conditions)
    mailbox.away.update(scenario.client_names)
    with pytest.raises(RunError, match="0 of 3 devices ready"):
        on_devices(scenario, mailbox, tmp_path / "none", conditions)


def introduced(**values: Any) -> Tamper:
    def tamper(body: bytes) -> bytes:
        own, _ = unpack(body, Introduction)
        return pack(own.model_copy(update=values))

    return tamper


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_fingerprint": "other"}, "its model differs"),
        ({"protocol": 99}, "version mismatch"),
        ({"client": "intel-n100-1"}, "registered for client 'jetson-orin-nano-1'"),
        ({"client": "nobody"}, "not in the scenario"),
    ],
)
def test_who_does_not_belong_is_refused(
    scenario: Scenario,
    devices: dict[str, Device],
    tmp_path: Path,
    values: dict[str, Any],
    reason: str,
) -> None:
    mailbox = FakeMailbox(devices)
    mailbox.tamper[(scenario.client_names[0], "hello")] = introduced(**values)
    with pytest.raises(RunError, match=f"2 of 3 devices ready.*refused: .*{reason}"):
        on_devices(scenario, mailbox, tmp_path / "run", Conditions(devices=3, wait_s=0.2))


def test_one_client_is_not_played_twice(
    scenario: Scenario, devices: dict[str, Device], tmp_path: Path
) -> None:
    mailbox = FakeMailbox(devices)
    mailbox.registered = False
    mailbox.tamper[(scenario.client_names[1], "hello")] = introduced(
        client=scenario.client_names[0]
    )
    with pytest.raises(RunError, match="already played by another device"):
        on_devices(scenario, mailbox, tmp_path / "run", Conditions(devices=3, wait_s=0.2))


def asked(device: Device, fields: Fields, arrays: dict[str, np.ndarray] | None = None) -> str:
    body = device.handle(pack(fields, arrays))
    assert kind_of(body) == "refusal"
    return unpack(body, Refusal)[0].reason


def test_a_device_refuses_in_one_line(scenario: Scenario, devices: dict[str, Device]) -> None:
    device = devices[scenario.client_names[0]]
    hello = Hello(version="0.1.0", run="run-9", scenario=agreement(scenario))
    assert "version mismatch" in asked(device, hello.model_copy(update={"protocol": PROTOCOL + 1}))
    other = agreement(load_scenario("tiny", [*SMALL, "seed=5"]))
    assert "the scenarios differ: aggregation" in asked(
        device, hello.model_copy(update={"scenario": other})
    )
    job = job_fields("run-9", 1, assignment(0, mode(4)))
    assert "has not introduced itself" in asked(device, job)
    assert kind_of(device.handle(pack(hello))) == "introduction"
    assert "values were expected" in asked(device, job)
    assert "not for devices" in asked(device, Refusal(reason="x"))
    assert kind_of(device.handle(b"junk")) == "refusal"


def test_a_device_has_to_be_a_client(scenario: Scenario, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its 3 clients are jetson-orin-nano-1"):
        Device(scenario, "nobody", Unpaced(), tmp_path)


def test_refits_to_the_trained_model_are_refused(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, "pruning.refit_every_rounds=2"])
    with pytest.raises(InputError, match=r"pruning\.refit_every_rounds is for simulated clients"):
        on_devices(scenario, FakeMailbox({}), tmp_path / "run", Conditions(devices=3, wait_s=5.0))


def test_private_devices_clip_count_and_stop(tmp_path: Path) -> None:
    values = [*SMALL, "rounds=3", "pruning.max_pruning=0.0"]
    scenario = load_scenario("tiny", values)
    privacy = parse_privacy("clip=0.1,noise=2.0,budget=8")
    folders = {name: tmp_path / name for name in scenario.client_names}
    for folder in folders.values():
        folder.mkdir()
    devices = {n: Device(scenario, n, Unpaced(), folders[n], privacy) for n in folders}
    conditions = Conditions(devices=3, wait_s=5.0, privacy=privacy)
    with pytest.raises(RunError, match=r"round 3: no client's update.*privacy budget used up"):
        on_devices(scenario, FakeMailbox(devices), tmp_path / "run", conditions)
    for folder in folders.values():
        assert read_ledger(folder / "privacy.json").noise_multipliers == [2.0, 2.0]
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"train_loss":null' in lines[0].replace(" ", "")
    with pytest.raises(InputError, match="max_pruning"):
        Device(
            load_scenario("tiny", SMALL), folders and "intel-n100-1", Unpaced(), tmp_path, privacy
        )


def test_no_honest_update_passes_the_norm_bound(scenario: Scenario) -> None:
    hot = scenario.training.model_copy(update={"learning_rate": 1.0, "weight_decay": 0.1})
    worker = Worker(scenario.model_copy(update={"training": hot}))
    start = worker.initial_adapter()
    update = worker.train(ClientJob(1, assignment(0, mode(4, steps=4)), start))
    moved = sum(float((update.adapter[n] - start[n]).square().sum()) for n in start) ** 0.5
    values = sum(value.numel() for value in start.values())
    norm = sum(float(value.square().sum()) for value in start.values()) ** 0.5
    bound = norm_bound(hot, 4, values, norm)
    assert moved <= bound
    assert moved > 0.02 * bound  # the bound says something


def test_the_bitmap_is_the_structure(scenario: Scenario) -> None:
    shape = Worker(scenario).shape
    structure = Structure(channels=((0, 5, 31), (), (1,)), groups=((1,), (), ()))
    arrays = structure_array(structure, shape)
    assert structure_of(arrays, shape) == structure
    arrays["kept"][0, -1] |= 1  # a padding bit
    with pytest.raises(ProtocolError, match="units that the model does not have"):
        structure_of(arrays, shape)
    with pytest.raises(ProtocolError, match="must be uint8 of shape"):
        structure_of({}, shape)
    adapter = {"b": torch.tensor([[0.5], [2.0]]), "a": torch.tensor([0.1])}
    sent = adapter_of(adapter_arrays(adapter, 16), layout_of(adapter))
    assert sent["a"].dtype == torch.float32
    assert torch.equal(sent["b"], adapter["b"])


def test_handling_never_raises_from_any_thread(devices: dict[str, Device]) -> None:
    device = next(iter(devices.values()))
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: answers.append(device.handle(b"\x00" * 9)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [kind_of(answer) for answer in answers] == ["refusal"] * 3
