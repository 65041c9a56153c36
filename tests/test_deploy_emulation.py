"""Emulated devices: the answer comes at the profile's time, and says if it could not."""

from __future__ import annotations

from pathlib import Path

import pytest

from airtune.deploy.codec import adapter_arrays
from airtune.deploy.device import Device
from airtune.deploy.emulation import OWN, Emulated, emulated_profile, overran
from airtune.deploy.pacing import Unpaced
from airtune.deploy.protocol import Hello, Introduction, Update, agreement, job_fields, pack, unpack
from airtune.errors import InputError
from airtune.models.devices import DeviceProfile, profile_of
from airtune.scenario import load_scenario
from assigned import assignment, mode

SMALL = ["rounds=1", "task.train_examples=96", "task.eval_examples=4", "training.local_steps=1"]
SLOW = DeviceProfile("slow", 2e9, 0.5, 8e9, None, "a test")


class Time:
    def __init__(self) -> None:
        self.now = 50.0
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_an_answer_is_held_back_until_the_counted_time_has_passed() -> None:
    time = Time()
    emulated = Emulated(SLOW, lambda: time.now, time.sleep)
    begin_s = time.now
    time.now += 4.0  # the work
    assert emulated.hold(begin_s, 13e9) == 13.0  # 13e9 FLOP at 1e9 FLOP/s
    assert time.slept == [9.0]
    assert not overran(time.now - begin_s, 13.0)


def test_work_that_took_longer_is_not_held_back_and_does_not_count() -> None:
    time = Time()
    emulated = Emulated(SLOW, lambda: time.now, time.sleep)
    begin_s = time.now
    time.now += 14.0
    assert emulated.hold(begin_s, 13e9) == 13.0
    assert time.slept == []
    assert overran(time.now - begin_s, 13.0)
    assert not overran(1e9, None)


def test_the_profile_is_the_scenarios_or_one_by_name() -> None:
    scenario = load_scenario("tiny", ["devices=[{profile='raspberry-pi-5', utilisation=0.1}]"])
    client = scenario.client_names[0]
    assert emulated_profile(OWN, scenario, client) == profile_of(scenario.client_devices[0])
    assert emulated_profile(OWN, scenario, client).utilisation == 0.1
    assert emulated_profile("jetson-orin-nano", scenario, client).name == "jetson-orin-nano"
    with pytest.raises(InputError, match="not in the scenario"):
        emulated_profile(OWN, scenario, "nobody")
    with pytest.raises(InputError, match="jetson-orin-nan"):
        emulated_profile("jetson-orin-nan", scenario, client)


def test_a_device_plans_and_answers_at_the_profiles_speed(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", SMALL)
    client = scenario.client_names[0]
    held: list[float] = []

    class Noted(Emulated):
        def hold(self, begin_s: float, flops: float) -> float:
            held.append(flops)
            return super().hold(begin_s, flops)

    slow = Noted(SLOW, sleep=lambda seconds: None)
    device = Device(scenario, client, Unpaced(), tmp_path, emulated=slow)
    hello = Hello(version="0", run="run-1", scenario=agreement(scenario))
    own, _ = unpack(device.handle(pack(hello)), Introduction)
    assert own.effective_flops == 1e9
    assert own.profile == "slow"
    told = job_fields("run-1", 1, assignment(0, mode(scenario.training.lora_rank)))
    body = pack(told, adapter_arrays(device._worker.initial_adapter(), 16))
    update, _ = unpack(device.handle(body), Update)
    assert len(held) == 1  # the job; rehearsals take no profile's time
    assert update.emulated_s == pytest.approx(held[0] / 1e9)
