"""What a client is billed, by hand; and the state that a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from airtune.assignment import Assignment, PlannedTimes
from airtune.errors import InputError
from airtune.models.devices import DeviceProfile, profile_of
from airtune.models.structure import Structure
from airtune.models.workload import StepTokens
from airtune.planning.fairness import Contributed
from airtune.planning.inputs import ClientLoad
from airtune.record import Checkpoint
from airtune.rounds.bills import (
    bill,
    finite,
    idle,
    kept_speed,
    speeds_after,
    what_binds,
    with_energy,
)
from airtune.rounds.state import State, packed, restored
from airtune.scenario import load_scenario
from airtune.training.client import ClientFailure, ClientUpdate, Measured
from assigned import mode

PLANNED = PlannedTimes(downlink_s=0.5, compute_s=3.0, upload_s=7.0, round_s=11.0)
LOAD = ClientLoad((StepTokens(2, 10, 5), StepTokens(2, 10, 7), StepTokens(2, 10, 9)), examples=13)
ASSIGNED = Assignment(
    client=1,
    mode=mode(4, steps=2, bits=8, scale=32),
    pruning=0.25,
    bandwidth_hz=1e5,
    rate_bps=2e5,
    downlink_rate_bps=1e6,
    downlink_bits=3e4,
    planned=PLANNED,
)


def profile() -> DeviceProfile:
    return profile_of(load_scenario("tiny").client_devices[0])


def update(**changes: Any) -> ClientUpdate:
    made = ClientUpdate(
        round=1,
        client=1,
        adapter={},
        structure=Structure((), ()),
        pruning=0.26,
        examples=13,
        train_loss=1.5,
        flops=6e9,
        uplink_bits=4e5,
    )
    return replace(made, **changes)


def billed(outcome: ClientUpdate | ClientFailure, snr_hz: float | None = 1e7) -> dict[str, Any]:
    one = bill("k", profile(), LOAD, ASSIGNED, outcome, "ok", binds="air", snr_hz=snr_hz)
    return asdict(one)


TOLD = {
    "name": "k",
    "status": "ok",
    "asked_pruning": 0.25,
    "local_steps": 2,
    "rank": 4,
    "bits_per_value": 8,
    "binds": "air",
    "bandwidth_hz": 1e5,
    "snr_db": pytest.approx(20.0),
    "downlink_bits": 3e4,
    "examples": 13,
    "label_tokens": 12,  # of the two steps that it was told
}


def is_billed(found: dict[str, Any], **expected: Any) -> None:
    for key, value in (TOLD | expected).items():
        assert found[key] == value, key


def test_an_update_is_billed_what_it_computed_and_sent() -> None:
    compute_s = 6e9 / profile().effective_flops
    is_billed(
        billed(update()),
        pruning=0.26,
        rate_bps=2e5,
        downlink_s=0.5,
        compute_s=pytest.approx(compute_s),
        upload_s=2.0,
        total_s=pytest.approx(2.5 + compute_s),
        engine_s=None,
        uplink_bits=4e5,
        flops=6e9,
        train_loss=1.5,
    )
    nothing_sent = billed(update(uplink_bits=0.0, train_loss=float("nan")))
    assert nothing_sent["upload_s"] == 0.0
    assert nothing_sent["rate_bps"] == 2e5
    assert nothing_sent["train_loss"] is None
    assert billed(update(uplink_bits=0.5))["upload_s"] == 0.5 / 2e5
    assert billed(update(), snr_hz=None)["snr_db"] is None


def test_who_sits_out_draws_nothing_and_a_status_is_recorded() -> None:
    device = load_scenario("tiny").client_devices[0]
    drawn = with_energy(idle("k", LOAD), device, profile(), 30.0)
    parts = (drawn.energy_j, drawn.compute_j, drawn.transmit_j, drawn.receive_j, drawn.wait_j)
    assert parts == (0.0,) * 5
    one = bill("k", profile(), LOAD, ASSIGNED, update(), "lost: x", binds="air", snr_hz=None)
    assert one.status == "lost: x"


def test_a_real_device_is_billed_what_it_measured() -> None:
    real = Measured(downlink_s=0.1, compute_s=0.2, upload_s=0.4, engine_s=0.8)
    is_billed(
        billed(update(measured=real)),
        pruning=0.26,
        rate_bps=pytest.approx(1e6),
        downlink_s=0.1,
        compute_s=0.2,
        upload_s=0.4,
        total_s=pytest.approx(0.7),
        engine_s=0.8,
        uplink_bits=4e5,
        flops=6e9,
    )
    at_once = billed(update(measured=replace(real, upload_s=0.0)))
    assert at_once["rate_bps"] is None


def test_a_failure_is_billed_what_was_planned_or_how_long_the_round_waited() -> None:
    nothing = {"pruning": None, "rate_bps": None, "train_loss": None, "engine_s": None}
    nothing |= {"upload_s": 0.0, "uplink_bits": 0.0, "flops": 0.0}
    failed = ClientFailure(1, "no memory")
    is_billed(billed(failed), downlink_s=0.5, compute_s=3.0, total_s=3.5, **nothing)
    waited = replace(failed, after_s=9.0)
    is_billed(billed(waited), downlink_s=0.0, compute_s=9.0, total_s=9.0, **nothing)


def test_a_client_without_a_band_has_no_snr() -> None:
    without = replace(ASSIGNED, bandwidth_hz=0.0)
    one = bill("k", profile(), LOAD, without, update(), "ok", binds="air", snr_hz=1e7)
    assert one.snr_db is None
    narrow = replace(ASSIGNED, bandwidth_hz=0.5)
    one = bill("k", profile(), LOAD, narrow, update(), "ok", binds="air", snr_hz=5.0)
    assert one.snr_db == pytest.approx(10.0)


def test_who_sits_out_has_a_line_of_nothing() -> None:
    found = asdict(idle("k", LOAD))
    known = {"name": "k", "status": "sat out", "examples": 13}
    unknown = {"asked_pruning", "pruning", "rate_bps", "snr_db", "train_loss", "engine_s", "binds"}
    unknown |= {"local_steps", "rank", "bits_per_value", "eval_loss", "energy_j", "compute_j"}
    unknown |= {"inclusion_probability", "success_probability"}  # a cohort's draws alone have them
    unknown |= {"transmit_j", "receive_j", "wait_j"}  # `with_energy` knows the round's end
    for key, value in found.items():
        if key in known:
            assert value == known[key], key
        elif key in unknown:
            assert value is None, key
        else:
            assert value == 0, key
            assert not isinstance(value, bool)


@pytest.mark.parametrize(
    ("times", "least", "pruning", "owed", "said"),
    [
        ((3.0, 7.0), 0.1, 0.1, 0.0, "air, least"),
        ((3.0, 7.0), 0.1001, 0.1001, 0.0, "air, memory"),
        ((3.0, 7.0), 0.0, 0.25, 0.0, "air"),
        ((7.0, 3.0), 0.0, 0.25, 0.0, "compute"),
        ((3.0, 3.0), 0.0, 0.0, 0.0, "compute"),
        ((3.0, 7.0), 0.25, 0.25, 0.0, "air, memory"),
        ((3.0, 7.0), 0.25, 0.25 * (1 + 5e-10), 0.0, "air, memory"),
        ((3.0, 7.0), 0.25, 0.26, 0.0, "air"),
        ((3.0, 7.0), 0.0, 0.25, 0.5, "air, floor"),
        ((7.0, 3.0), 0.5, 0.4, 0.5, "compute, memory, floor"),
    ],
)
def test_what_bounds_a_plan_is_said(
    times: tuple[float, float], least: float, pruning: float, owed: float, said: str
) -> None:
    planned = replace(PLANNED, compute_s=times[0], upload_s=times[1])
    assigned = replace(ASSIGNED, planned=planned, pruning=pruning)
    assert what_binds(assigned, least, owed, asked_pruning=0.1) == said


def test_a_real_devices_speed_is_half_of_what_was_known_and_half_of_what_it_took() -> None:
    slow = kept_speed(profile(), 1e9)
    assert slow.effective_flops == 1e9
    assert kept_speed(profile(), None) == profile()
    real = Measured(downlink_s=0.0, compute_s=12.0, upload_s=0.0, engine_s=0.0)
    outcomes = [ClientFailure(0, "away"), update(measured=real), update(client=2)]
    # Expected: 1 ns an operation; took 2 ns: 1.5 ns from now on.
    assert speeds_after([None, None, 5.0], [slow] * 3, outcomes) == (
        None,
        pytest.approx(1e9 / 1.5),
        5.0,
    )
    # One that takes a profile's time keeps the profile's speed.
    held = [update(measured=replace(real, emulated=True))]
    assert speeds_after([None, None, None], [slow] * 3, held) == (None, None, None)


def test_numbers_that_are_not_finite_are_none() -> None:
    assert [finite(v) for v in (None, float("nan"), float("inf"), 0.0, 2.0)] == [
        None, None, None, 0.0, 2.0]  # fmt: skip


STATE = State(
    round=3,
    elapsed_s=12.5,
    adapter={"x/y.lora_A.weight": torch.arange(6.0).reshape(2, 3)},
    optimizer_states={2: {"a/b|step": torch.tensor(4.0)}, 10: {"m": torch.ones(2)}},
    losses=(2.0, None, 1.5),
    pruning_losses=(0.1, 0.2),
    speeds=(None, 3e9),
    missed_bits=(77.0, 0.0),
    queues=(0.5, 0.0),
    contributed=Contributed((0.5, 1.25), (1, 2)),
)


# All that a state is restored for: a scenario in which every client takes part.
CELL: Any = SimpleNamespace(scenario=load_scenario("tiny"))


def saved(state: State, **changes: Any) -> Checkpoint:
    tensors, payload = packed(state)
    return Checkpoint(round=state.round, tensors=tensors, payload=payload | changes)


def test_a_state_comes_back_from_its_checkpoint() -> None:
    back = restored(saved(STATE), CELL)
    assert back is not None
    plain = ("round", "elapsed_s", "losses", "pruning_losses", "speeds", "missed_bits", "queues",
             "contributed")  # fmt: skip
    assert [getattr(back, k) for k in plain] == [getattr(STATE, k) for k in plain]
    assert back.adapter.keys() == STATE.adapter.keys()
    torch.testing.assert_close(back.adapter, STATE.adapter)
    assert back.optimizer_states.keys() == STATE.optimizer_states.keys()
    for client, moments in STATE.optimizer_states.items():
        assert back.optimizer_states[client].keys() == moments.keys()
        torch.testing.assert_close(back.optimizer_states[client], moments)
    assert restored(None, CELL) is None


def test_a_restored_state_does_not_share_the_checkpoints_memory() -> None:
    checkpoint = saved(STATE)
    back = restored(checkpoint, CELL)
    assert back is not None
    for array in checkpoint.tensors.values():
        array = np.asarray(array)
        array += 1
    # `packed` shares with STATE, which is put right again.
    try:
        assert float(back.adapter["x/y.lora_A.weight"][0, 1]) == 1.0
        assert float(back.optimizer_states[10]["m"][0]) == 1.0
    finally:
        for array in checkpoint.tensors.values():
            array -= 1


def test_what_later_versions_added_may_be_missing_and_what_was_always_there_may_not() -> None:
    old = saved(STATE)
    for key in ("missed_bits", "queues", "contributed"):
        del old.payload[key]
    back = restored(old, CELL)
    assert back is not None
    assert (back.missed_bits, back.queues, back.contributed) == ((), (), Contributed())
    for key in ("losses", "pruning_losses", "speeds"):
        older = saved(STATE)
        del older.payload[key]
        with pytest.raises(InputError, match="the checkpoint of round 3 is an earlier version's"):
            restored(older, CELL)
    with pytest.raises(InputError, match="the checkpoint of round 3 is an earlier version's"):
        restored(saved(STATE, stacked_bits=77.0), CELL)
    assert restored(saved(STATE, stacked_bits=None), CELL) is not None


def test_a_run_ends_with_its_rounds_or_its_time() -> None:
    def last(round: int, elapsed_s: float, *settings: str) -> bool:
        return replace(STATE, round=round, elapsed_s=elapsed_s).is_last(
            load_scenario("tiny", ["rounds=4", *settings])
        )

    assert [last(k, 1e9) for k in (3, 4, 5)] == [False, True, True]
    assert last(1, 10.0, "time_budget_s=10")
    assert last(2, 11.0, "time_budget_s=10")
    assert not last(2, 9.9, "time_budget_s=10")
    assert not last(0, 10.0, "time_budget_s=10")  # the first round is always done
