"""Fading, rates, placement and a round's channel: statistics, properties, refusals."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.channel import Placement, draw, place, rate_of_band
from airtune.channel.fading import fading_gain
from airtune.channel.pathloss import los_probability
from airtune.errors import InputError
from airtune.randomness import generator
from airtune.scenario import CellSection, DeviceSection, builtin_scenarios, load_scenario
from airtune.units import db_to_linear

MANY = 200_000
PI = DeviceSection(profile="raspberry-pi-5")


def at(distance_m: float, **keys: object) -> DeviceSection:
    return PI.model_copy(update={"distance_m": distance_m, **keys})


def placed(cell: CellSection, *devices: DeviceSection, seed: int = 0) -> Placement:
    return place(cell, devices, generator(seed, "placement"))


# Fading


@pytest.mark.parametrize(
    ("fading", "k_db"), [("rayleigh", 0.0), ("rician", -20.0), ("rician", 6.0), ("rician", 20.0)]
)
def test_fading_power_has_mean_one_and_the_model_s_variance(fading: str, k_db: float) -> None:
    """Var |h|^2 = (1 + 2K)/(1 + K)^2, K = 0 for Rayleigh; 4 standard errors are allowed."""
    cell = CellSection(fading=fading, rician_k_db=k_db)
    gain = fading_gain(cell, MANY, generator(3, "fading"))
    k = 0.0 if fading == "rayleigh" else 10 ** (k_db / 10)
    variance = (1 + 2 * k) / (1 + k) ** 2
    assert gain.mean() == pytest.approx(1.0, abs=4 * math.sqrt(variance / MANY))
    assert gain.var() == pytest.approx(variance, rel=0.03)


def test_rayleigh_power_is_exponential() -> None:
    gain = fading_gain(CellSection(fading="rayleigh"), MANY, generator(4, "fading"))
    for level in (0.01, 0.1, 1.0, 3.0):
        expected = 1 - math.exp(-level)
        error = math.sqrt(expected * (1 - expected) / MANY)
        assert np.mean(gain <= level) == pytest.approx(expected, abs=4 * error)


def test_no_fading_is_a_gain_of_one() -> None:
    assert fading_gain(CellSection(fading="none"), 3, generator(0, "fading")).tolist() == [1, 1, 1]


# Rates


def test_rate_is_shannon_s() -> None:
    assert rate_of_band(1e6, 3e6) == pytest.approx(2e6)  # SNR 3: log2(4)
    assert rate_of_band(1e6, 3e6, 1.5) == pytest.approx(1.5e6)
    assert rate_of_band(0.0, 3e6) == 0.0
    assert rate_of_band(1e6, 0.0) == 0.0
    wide = rate_of_band(np.array([1e6, 0.0]), np.array([[3e6], [7e6]]))
    assert wide == pytest.approx(np.array([[2e6, 0.0], [3e6, 0.0]]))


@given(
    band_hz=st.floats(1.0, 1e9),
    snr_hz=st.floats(1.0, 1e14),
    factor=st.floats(1.0, 1e3),
    cap=st.one_of(st.just(math.inf), st.floats(0.1, 10)),
)
def test_more_band_or_power_never_lowers_the_rate(
    band_hz: float, snr_hz: float, factor: float, cap: float
) -> None:
    rate = float(rate_of_band(band_hz, snr_hz, cap))
    assert rate <= rate_of_band(factor * band_hz, snr_hz, cap) * (1 + 1e-12)
    assert rate <= rate_of_band(band_hz, factor * snr_hz, cap) * (1 + 1e-12)
    assert rate <= min(snr_hz / math.log(2), cap * band_hz) * (1 + 1e-12)
    # Concave in the band through 0: twice the band gives at most twice the rate.
    assert rate_of_band(factor * band_hz, snr_hz, cap) <= factor * rate * (1 + 1e-12)


# Placement


def test_devices_are_uniform_over_the_ring_by_area() -> None:
    cell = CellSection(radius_m=250.0, min_distance_m=50.0)
    placement = placed(cell, *[PI] * 20_000)
    inner, outer = cell.min_distance_m, cell.radius_m
    distance_m = placement.distance_m
    assert distance_m.min() >= inner
    assert distance_m.max() <= outer
    # The share of area within d; Kolmogorov's distance exceeds 1.95/sqrt(n) once in 1000 draws.
    area = np.sort((distance_m**2 - inner**2) / (outer**2 - inner**2))
    steps = np.arange(1, area.size + 1) / area.size
    assert np.abs(area - steps).max() < 1.95 / math.sqrt(area.size)
    assert np.hypot(*placement.positions_m.T) == pytest.approx(distance_m)
    angle = np.sort(np.arctan2(*placement.positions_m.T) / (2 * np.pi) + 0.5)
    assert np.abs(angle - steps).max() < 1.95 / math.sqrt(angle.size)


@pytest.mark.parametrize("model", ["umi", "uma"])
def test_line_of_sight_is_as_frequent_as_its_probability(model: str) -> None:
    cell = CellSection(path_loss=model, radius_m=300.0)
    for distance_m in (15.0, 40.0, 100.0, 250.0):
        placement = placed(cell, *[at(distance_m)] * 5_000, seed=int(distance_m))
        expected = float(los_probability(cell, np.array([distance_m]))[0])
        error = math.sqrt(expected * (1 - expected) / 5_000)
        assert placement.is_los.mean() == pytest.approx(expected, abs=4 * error)


def test_line_of_sight_and_position_are_drawn_apart() -> None:
    """Over random positions the frequency is the mean probability, near, far and all around."""
    cell = CellSection(radius_m=150.0)
    placement = placed(cell, *[PI] * 20_000)
    probability = los_probability(cell, placement.distance_m)
    near = placement.distance_m < 100.0
    east, north = (placement.positions_m > 0).T
    for part in (near, ~near, east, north):
        spread = (probability * (1 - probability))[part].sum()
        lucky = placement.is_los[part].sum() - probability[part].sum()
        assert abs(lucky) < 4 * math.sqrt(spread)


@pytest.mark.parametrize(
    ("model", "los_db", "nlos_db"), [("umi", 4.0, 7.82), ("uma", 4.0, 6.0), ("classic", None, 8.0)]
)
def test_shadowing_has_the_deviation_of_its_state(
    model: str, los_db: float | None, nlos_db: float
) -> None:
    placement = placed(CellSection(path_loss=model, radius_m=100.0), *[PI] * 20_000)
    assert placement.is_los.any() == (los_db is not None)
    for state, sigma_db in ((True, los_db), (False, nlos_db)):
        shadowing_db = placement.shadowing_db[placement.is_los == state]
        if sigma_db is not None:
            n = shadowing_db.size
            assert shadowing_db.mean() == pytest.approx(0, abs=4 * sigma_db / math.sqrt(n))
            assert shadowing_db.std() == pytest.approx(sigma_db, rel=4 / math.sqrt(2 * n))
    # Line of sight and shadowing are drawn apart.
    standard = placement.shadowing_db / np.where(placement.is_los, los_db or nlos_db, nlos_db)
    assert abs(np.corrcoef(standard, placement.distance_m)[0, 1]) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("model", ["umi", "uma", "classic"])
def test_another_client_at_the_end_moves_nobody(model: str) -> None:
    cell = CellSection(path_loss=model)
    few, more = [PI, at(100.0), PI], [PI, at(100.0), PI, PI]
    before, after = placed(cell, *few), placed(cell, *more)
    drawn = [field for field in fields(Placement) if field.name != "table"]
    for field in drawn:
        a, b = getattr(before, field.name), getattr(after, field.name)
        assert np.array_equal(a, b[:3]), field.name
    early = draw(cell, few, before, generator(0, "fading", round=2), round=2)
    late = draw(cell, more, after, generator(0, "fading", round=2), round=2)
    assert np.array_equal(early.snr_hz, late.snr_hz[:3])
    assert np.array_equal(early.downlink_rate_bps, late.downlink_rate_bps[:3])


def test_options_do_not_move_devices() -> None:
    """Shadowing off or one device held in place: the others stand where they stood."""
    base = placed(CellSection(), PI, PI, PI)
    still = placed(CellSection(shadowing=False), PI, at(77.0), PI)
    assert still.distance_m[[0, 2]].tolist() == base.distance_m[[0, 2]].tolist()
    assert still.distance_m[1] == 77.0
    assert not still.shadowing_db.any()
    assert base.shadowing_db.all()


def test_a_placement_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        placed(CellSection(), PI).distance_m[0] = 1.0


@pytest.mark.parametrize("seed", range(20))
def test_every_client_of_the_built_in_scenarios_is_reached(seed: int) -> None:
    for name in builtin_scenarios():
        scenario = load_scenario(name)
        devices = scenario.client_devices
        placement = placed(scenario.cell, *devices, seed=seed)
        state = draw(scenario.cell, devices, placement, generator(seed, "fading"), round=0)
        assert np.isfinite(state.snr_hz).all()
        assert (state.snr_hz > 0).all()


@pytest.mark.parametrize(
    ("cell", "device", "message"),
    [
        ({}, {"distance_m": 300.0}, "devices.distance_m = 300 .*10 to cell.radius_m = 250"),
        ({}, {"distance_m": 2.0}, "devices.distance_m = 2 of 'raspberry-pi-5' is outside"),
        ({}, {"power_dbm": -200.0}, r"client 1 \('raspberry-pi-5'\) cannot be reached.*uplink"),
        ({"base_station_power_dbm": -900.0}, {}, "cannot be reached.*base_station_power_dbm"),
        ({"path_loss": "classic", "radius_m": 9e5, "min_distance_m": 8e5}, {}, "cannot be reached"),
        ({}, {"power_dbm": 5000.0}, "on the uplink cannot be; check devices.power_dbm"),
        ({"base_station_power_dbm": 900.0}, {}, "on the downlink cannot be"),
        ({"fading": "rician", "rician_k_db": 1e6}, {}, "cell.rician_k_db = 1e.06 must be from"),
        ({"radius_m": 9000.0}, {}, "cell.radius_m = 9000"),
        ({}, {"uplink_trace": "/none/such"}, "cannot read trace '/none/such'"),
    ],
)
def test_impossible_cells_are_refused(
    cell: dict[str, object], device: dict[str, object], message: str
) -> None:
    section = CellSection.model_validate({"shadowing": False} | cell)
    with pytest.raises(InputError, match=message):
        placed(section, PI.model_copy(update=device))


# One round


def test_link_budget_by_hand() -> None:
    """Classic cell, 1 km, no shadowing or fading: 23 dBm - 128.1 dB - (-174 + 5) dBm/Hz = 63.9.

    The downlink: 44 - 128.1 + 174 - 9 = 80.9 dB Hz; less 73.01 dB of 20 MHz: an SNR of 7.89 dB.
    """
    cell = CellSection(path_loss="classic", radius_m=2000.0, shadowing=False, fading="none")
    devices = [at(1000.0), at(500.0)]
    state = draw(cell, devices, placed(cell, *devices), generator(0, "fading"), round=0)
    assert state.snr_hz[0] == pytest.approx(10**6.39, rel=1e-9)
    assert state.snr_hz[1] / state.snr_hz[0] == pytest.approx(2**3.76, rel=1e-3)
    expected_bps = 20e6 * math.log2(1 + 10**8.09 / 20e6)
    assert state.downlink_rate_bps[0] == pytest.approx(expected_bps, rel=1e-9)
    assert state.downlink_rate_bps.min() == pytest.approx(expected_bps, rel=1e-9)
    assert np.isinf(state.max_spectral_efficiency).all()
    assert state.received_snr_hz(0) == state.snr_hz[0]


def test_shadowing_and_fading_are_part_of_the_budget_of_both_directions() -> None:
    cell, devices = CellSection(), [PI] * 6
    placement = placed(cell, *devices)
    state = draw(cell, devices, placement, generator(0, "fading"), round=0)
    fading_db = 10 * np.log10(fading_gain(cell, 6, generator(0, "fading")))
    assert (fading_db != 0).all()
    gain_db = fading_db - placement.path_loss_db - placement.shadowing_db
    assert 10 * np.log10(state.snr_hz) == pytest.approx(23.0 + gain_db + 174.0 - 5.0)
    downlink_snr = 10 ** ((44.0 + gain_db + 174.0 - 9.0) / 10) / 20e6
    assert state.downlink_rate_bps == pytest.approx(20e6 * np.log2(1 + downlink_snr))


def test_the_gap_divides_the_snr_and_the_cap_bounds_the_rate() -> None:
    open_cell = CellSection(radius_m=50.0)
    cell = CellSection(radius_m=50.0, gap_db=3.0, max_spectral_efficiency=5.5547)
    devices = [PI] * 4
    rng = [generator(0, "fading", round=1) for _ in range(2)]
    free = draw(open_cell, devices, placed(open_cell, *devices), rng[0], round=1)
    real = draw(cell, devices, placed(cell, *devices), rng[1], round=1)
    assert real.snr_hz * 10**0.3 == pytest.approx(free.snr_hz)
    assert real.max_spectral_efficiency.tolist() == [5.5547] * 4
    # At 50 m the base station's 44 dBm are far above what 64QAM needs.
    assert real.downlink_rate_bps.min() == pytest.approx(20e6 * 5.5547)
    assert free.downlink_rate_bps.min() > real.downlink_rate_bps.min()


@given(power_dbm=st.floats(0, 40), more_db=st.floats(0, 20), seed=st.integers(0, 99))
def test_more_power_is_more_snr(power_dbm: float, more_db: float, seed: int) -> None:
    cell = CellSection(radius_m=100.0)
    weak, strong = (at(60.0, power_dbm=power_dbm + extra) for extra in (0.0, more_db))
    both = [
        draw(cell, [d], placed(cell, d, seed=seed), generator(seed, "fading"), round=0)
        for d in (weak, strong)
    ]
    assert both[1].snr_hz / both[0].snr_hz == pytest.approx(db_to_linear(more_db))
    assert both[0].downlink_rate_bps == pytest.approx(both[1].downlink_rate_bps)


def test_rounds_differ_and_repeat() -> None:
    cell = CellSection()
    placement = placed(cell, PI, PI)
    states = [
        draw(cell, [PI, PI], placement, generator(5, "fading", round=r), round=r) for r in (0, 1, 0)
    ]
    assert (states[0].snr_hz != states[1].snr_hz).all()
    assert np.array_equal(states[0].snr_hz, states[2].snr_hz)
    gains = [fading_gain(cell, 2, generator(5, "fading", round=r)) for r in (0, 1)]
    assert states[0].snr_hz / states[1].snr_hz == pytest.approx(gains[0] / gains[1])
    with pytest.raises(ValueError, match="read-only"):
        states[0].snr_hz[0] = 1.0


def test_a_trace_replaces_the_model_in_its_direction(tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    slow.write_text("4\n")  # 3 Mbit/s
    fast.write_text("1\n" * 5)  # 60 Mbit/s
    cell = CellSection(max_spectral_efficiency=0.01)
    devices = [
        at(100.0, uplink_trace=str(slow), downlink_trace=str(fast)),
        at(100.0, uplink_trace=str(fast)),
        at(100.0, downlink_trace=str(slow)),
    ]
    state = draw(cell, devices, placed(cell, *devices), generator(0, "fading"), round=3)
    share = np.array([1.0, 0.5, 1e-3])[:, None] * cell.uplink_bandwidth_hz
    rates = rate_of_band(share, state.snr_hz, state.max_spectral_efficiency)
    # The recorded capacity in full, a share of it for a share of the band; no cap on it.
    assert rates[:, 0] == pytest.approx([3e6, 1.5e6, 3e3])
    assert rates[:, 1] == pytest.approx([60e6, 30e6, 60e3])
    assert state.max_spectral_efficiency[2] == 0.01
    # A rate was recorded and no power: such a client has no SNR to speak of.
    assert [state.received_snr_hz(k) is None for k in range(3)] == [True, True, False]
    assert state.downlink_rate_bps == pytest.approx([60e6, 0.01 * 20e6, 3e6])
    assert state.downlink_rate_bps.min() == pytest.approx(0.2e6)


def test_clients_begin_their_trace_at_places_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "ramp"
    path.write_text("".join(f"{t * t // 1000}\n" for t in range(1, 10_000)))
    devices = [at(100.0, uplink_trace=str(path))] * 4
    cell = CellSection()
    placement = placed(cell, *devices)
    assert len({id(trace) for trace in placement.uplink_traces}) == 1
    state = draw(cell, devices, placement, generator(0, "fading"), round=0)
    assert len(set(state.max_spectral_efficiency)) == 4


def test_a_trace_out_of_reach_of_the_model_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("1\n")
    far = PI.model_copy(
        update={"power_dbm": -500.0, "uplink_trace": str(path), "downlink_trace": str(path)}
    )
    cell = CellSection(base_station_power_dbm=-500.0)
    state = draw(cell, [far], placed(cell, far), generator(0, "fading"), round=0)
    assert state.downlink_rate_bps.min() == 12e6


def test_a_trace_too_fast_for_the_band_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("1\n")
    cell = CellSection(uplink_bandwidth_hz=1e5)
    with pytest.raises(InputError, match=r"reaches 12 Mbit/s, .*set cell.uplink_bandwidth_hz"):
        placed(cell, PI.model_copy(update={"uplink_trace": str(path)}))


def test_the_channel_needs_neither_scipy_nor_torch() -> None:
    code = (
        "import sys, airtune.channel, airtune.models.devices\n"
        "print({'scipy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
