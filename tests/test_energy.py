"""Energy: joules by hand, on the record, and as a budget that the plan keeps."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import airtune as at
from airtune.errors import InputError
from airtune.models.devices import PROFILES, DeviceProfile
from airtune.models.energy import budgets_of, energy_of, transmit_w
from airtune.planning.inputs import plan_of_round, problem_of_scenario
from airtune.record import ClientRecord
from airtune.rounds.bills import SAT_OUT, ClientReading, energy_together, with_energy
from airtune.scenario import DeviceSection, Scenario, load_scenario

BOARD = DeviceProfile("board", 1e9, 1.0, 8e9, 10.0, "made", idle_power_w=2.0)
PHONE = DeviceSection(profile="raspberry-pi-5", radio="lte")

BILL = ClientRecord(
    name="a", asked_pruning=0.0, pruning=0.0, bandwidth_hz=1e6, rate_bps=4e6, downlink_s=2.0,
    compute_s=3.0, upload_s=5.0, total_s=10.0, uplink_bits=20e6, downlink_bits=40e6, flops=3e9,
    examples=1, label_tokens=1,
)  # fmt: skip


def test_a_round_by_hand() -> None:
    # 20 Mbit in 5 s are 4 Mbit/s; 40 Mbit come down in 2 s; the round ends after 16 s.
    made = with_energy(BILL, PHONE, BOARD, 16.0)
    assert made.compute_j == pytest.approx(10.0 * 3.0)
    assert made.transmit_j == pytest.approx((2.926 + 0.0767 * 4) * 5.0)
    assert made.receive_j == pytest.approx((1.288 + 0.05197 * 20) * 2.0)
    assert made.wait_j == pytest.approx(2.0 * (16.0 - 3.0))
    assert made.energy_j == pytest.approx(30.0 + 16.164 + 4.6548 + 26.0)


@pytest.mark.parametrize(
    ("radio", "rate_bps", "watt"),
    [
        ("amplifier", 1e6, 10 ** (-0.7) / 0.35 + 0.1),  # 23 dBm are 0.2 W
        ("lte", 10e6, 3.693),
        ("5g-low-band", 10e6, 3.521),
        ("mmwave", 100e6, 6.554),
        ("mmwave", 500e6, 7.622),  # not measured above 220 Mbit/s
        ("lte", math.inf, 5.0736),
    ],
)
def test_what_a_radio_draws(radio: str, rate_bps: float, watt: float) -> None:
    device = DeviceSection.model_validate({"profile": "raspberry-pi-5", "radio": radio})
    assert transmit_w(device, rate_bps) == pytest.approx(watt)


def test_unknown_power_is_none_and_idle_clients_draw_nothing() -> None:
    unknown = with_energy(BILL, PHONE, replace(BOARD, power_w=None, idle_power_w=None), 16.0)
    absent = with_energy(replace(BILL, status=SAT_OUT), PHONE, BOARD, 16.0)
    assert unknown.energy_j is None
    assert absent.energy_j == 0.0
    assert energy_together([BILL, absent]) is None
    known = with_energy(BILL, PHONE, BOARD, 16.0)
    assert energy_together([known, absent]) == known.energy_j


def test_reading_again_is_computing_and_a_client_that_sits_out_is_billed_for_nothing_else() -> None:
    reading = ClientReading(downlink_s=1.0, downlink_bits=20e6, compute_s=4.0, flops=4e9)
    takes_part = with_energy(BILL, PHONE, BOARD, 21.0, reading)
    without = with_energy(BILL, PHONE, BOARD, 16.0)
    assert takes_part.compute_j == pytest.approx(10.0 * (3.0 + 4.0))
    received_j = 1.288 * 1.0 + 0.05197 * 20
    assert takes_part.receive_j == pytest.approx(without.receive_j + received_j)
    assert takes_part.wait_j == pytest.approx(2.0 * (21.0 - 7.0))
    absent = with_energy(ClientRecord.of_nothing("a", SAT_OUT), PHONE, BOARD, 21.0, reading)
    assert (absent.compute_j, absent.transmit_j, absent.wait_j) == (40.0, 0.0, 0.0)
    assert absent.receive_j == pytest.approx(received_j)


def test_a_client_that_sends_nothing_only_computes_and_waits() -> None:
    made = energy_of(
        PHONE, replace(BOARD, idle_power_w=None), compute_s=3.0, upload_s=0.0, uplink_bits=0.0,
        downlink_s=0.0, downlink_bits=0.0, round_s=5.0,
    )  # fmt: skip
    assert made is not None
    assert (made.transmit_j, made.receive_j) == (0.0, 0.0)
    assert made.energy_j == pytest.approx(30.0 + 0.3 * 10.0 * 2.0)


def budgeted(joules: float | None) -> Scenario:
    scenario = load_scenario("tiny")
    devices = tuple(d.model_copy(update={"energy_budget_j": joules}) for d in scenario.devices)
    return scenario.model_copy(update={"devices": devices})


def test_the_plan_keeps_the_budget() -> None:
    free = problem_of_scenario(budgeted(None))
    assert free.energy_budget_j is None
    loose = plan_of_round(budgeted(1e9), problem_of_scenario(budgeted(1e9)), 1, method="exact")
    assert loose.energy_j is not None
    limit = 0.8 * float(loose.energy_j.max())
    problem = problem_of_scenario(budgeted(limit))
    made = plan_of_round(budgeted(limit), problem, 1, method="exact")
    profiles = [PROFILES[d.profile] for d in budgeted(limit).client_devices]
    sends = 10 ** (-0.7) / 0.35 + 0.1
    by_hand = [
        (p.power_w or 0) * c + sends * u
        for p, c, u in zip(profiles, made.compute_s, made.upload_s, strict=True)
    ]
    assert made.energy_j == pytest.approx(by_hand)
    assert max(by_hand) <= limit * (1 + 1e-9)
    assert made.objective_s >= loose.objective_s
    assert np.any(made.pruning > loose.pruning)


def test_a_budget_without_a_power_is_refused() -> None:
    device = DeviceSection(profile="apple-m4", energy_budget_j=5.0)
    with pytest.raises(InputError, match=r"energy_budget_j = 5 of 'apple-m4': no power"):
        budgets_of([device], [PROFILES["apple-m4"]])


@pytest.mark.parametrize("compute_power_w", [0.0, 1.0])
def test_a_budget_that_never_binds_changes_no_plan(compute_power_w: float) -> None:
    def modes(full_s: tuple[float, ...]) -> list[dict[str, object]]:
        # The payload does not depend on what is kept, as with an adapter that is sent whole.
        costs, bits = (0.0, 0.1, 0.3), (1e6, 7e5, 4e5)
        return [
            {"name": f"m{k}", "cost": costs[k], "compute_fixed_s": 1.0, "compute_full_s": seconds,
             "payload_fixed_bits": bits[k], "payload_full_bits": 0.0}
            for k, seconds in enumerate(full_s)
        ]  # fmt: skip

    clients = [
        {"name": "a", "weight": 4.0, "snr_hz": 2e7, "downlink_s": 2.0,
         "modes": modes((18.19, 12.73, 7.28))},
        {"name": "b", "weight": 3.0, "snr_hz": 3e6, "downlink_s": 0.5,
         "modes": modes((51.28, 35.89))},
    ]  # fmt: skip
    budget = {
        "energy_budget_j": 1e9,
        "transmit_power_w": 0.5,
        "compute_power_w": compute_power_w,
    }

    def solved(more: dict[str, float]) -> at.Plan:
        limits = {"min_pruning": 0.0, "max_pruning": 0.7}
        problem = {"bandwidth_hz": 2e6, "kappa": 0.8}
        text = json.dumps({**problem, "clients": [{**one, **limits, **more} for one in clients]})
        return at.plan(at.problem_from_json(text))

    free, budgeted = solved({}), solved(budget)
    assert budgeted.objective_s == pytest.approx(free.objective_s, rel=2e-6)
    assert budgeted.lower_bound_s <= free.objective_s
    assert budgeted.gap < 1e-6
