"""Path loss against hand-computed points, an independent slow version, and its properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.channel.pathloss import (
    breakpoint_distance_m,
    check_cell,
    los_probability,
    path_loss_db,
    shadowing_sigma_db,
)
from airtune.errors import InputError
from airtune.scenario import CellSection

distances = st.floats(10, 5000)
carriers = st.floats(0.5e9, 100e9)


def one(cell: CellSection, distance_m: float, los: bool) -> float:
    return float(path_loss_db(cell, np.array([distance_m]), np.array([los]))[0])


def slow_path_loss_db(
    model: str, d2d: float, fc_hz: float, h_bs: float, h_ut: float, los: bool
) -> float:
    """TR 38.901 Table 7.4.1-1 again, one device at a time, from the table's own layout."""
    if model == "classic":
        return 128.1 + 37.6 * math.log10(d2d / 1e3)
    fc = fc_hz / 1e9
    d3d = math.sqrt(d2d**2 + (h_bs - h_ut) ** 2)
    bp = 4 * (h_bs - 1) * (h_ut - 1) * fc_hz / 3.0e8
    corner = math.log10(bp**2 + (h_bs - h_ut) ** 2)
    if model == "umi":
        first = 32.4 + 21 * math.log10(d3d) + 20 * math.log10(fc)
        second = 32.4 + 40 * math.log10(d3d) + 20 * math.log10(fc) - 9.5 * corner
        blocked = 35.3 * math.log10(d3d) + 22.4 + 21.3 * math.log10(fc) - 0.3 * (h_ut - 1.5)
    else:
        first = 28.0 + 22 * math.log10(d3d) + 20 * math.log10(fc)
        second = 28.0 + 40 * math.log10(d3d) + 20 * math.log10(fc) - 9 * corner
        blocked = 13.54 + 39.08 * math.log10(d3d) + 20 * math.log10(fc) - 0.6 * (h_ut - 1.5)
    clear = first if d2d < bp else second
    return clear if los else max(clear, blocked)


# Worked on paper at 3.5 GHz (log fc = 0.544068), h_UT 1.5 m. UMi: h_BS 10 m, d_BP 210.15 m;
# UMa: h_BS 25 m, d_BP 560.39 m. E.g. UMi LOS at 100 m: d_3D = 100.3606, log = 2.001563,
# 32.4 + 42.0328 + 10.8814 = 85.3142; past the breakpoint, at 400 m: 32.4 + 104.0863
# + 10.8814 - 9.5 * 4.645753 = 103.2330.
@pytest.mark.parametrize(
    ("model", "distance_m", "los", "expected_db"),
    [
        ("umi", 100.0, True, 85.3142),
        ("umi", 400.0, True, 103.2330),
        ("umi", 100.0, False, 104.6438),
        ("uma", 200.0, True, 89.5695),
        ("uma", 1000.0, True, 109.4065),
        ("uma", 200.0, False, 114.4620),
        ("classic", 1000.0, False, 128.1),
        ("classic", 100.0, True, 90.5),
    ],
)
def test_hand_computed_points(model: str, distance_m: float, los: bool, expected_db: float) -> None:
    cell = CellSection(path_loss=model, carrier_hz=3.5e9)
    assert one(cell, distance_m, los) == pytest.approx(expected_db, abs=2e-4)


def test_breakpoint_distances() -> None:
    assert breakpoint_distance_m(CellSection(path_loss="umi")) == pytest.approx(210.15, abs=0.01)
    assert breakpoint_distance_m(CellSection(path_loss="uma")) == pytest.approx(560.39, abs=0.01)


@given(
    model=st.sampled_from(["umi", "uma", "classic"]),
    distance_m=distances,
    carrier_hz=carriers,
    h_bs=st.floats(5, 40),
    h_ut=st.floats(1.5, 12.9),
    los=st.booleans(),
)
def test_against_the_slow_version(
    model: str, distance_m: float, carrier_hz: float, h_bs: float, h_ut: float, los: bool
) -> None:
    cell = CellSection(
        path_loss=model,
        carrier_hz=carrier_hz,
        base_station_height_m=h_bs,
        device_height_m=h_ut,
    )
    expected = slow_path_loss_db(model, distance_m, carrier_hz, h_bs, h_ut, los)
    # c = 3e8 there: 0.07 % of the breakpoint distance, 19 dB a decade of it.
    assert one(cell, distance_m, los) == pytest.approx(expected, abs=0.006)


@given(
    model=st.sampled_from(["umi", "uma", "classic"]),
    carrier_hz=carriers,
    h_ut=st.floats(1.5, 12.9),
    los=st.booleans(),
    near=distances,
    far=distances,
)
def test_farther_is_never_louder(
    model: str, carrier_hz: float, h_ut: float, los: bool, near: float, far: float
) -> None:
    cell = CellSection(path_loss=model, carrier_hz=carrier_hz, device_height_m=h_ut)
    near, far = min(near, far), max(near, far)
    assert one(cell, near, los) <= one(cell, far, los) + 1e-9
    assert one(cell, near, True) <= one(cell, near, False)


@given(model=st.sampled_from(["umi", "uma"]), carrier_hz=carriers, h_ut=st.floats(1.5, 12.9))
def test_the_two_slopes_meet_at_the_breakpoint(model: str, carrier_hz: float, h_ut: float) -> None:
    cell = CellSection(path_loss=model, carrier_hz=carrier_hz, device_height_m=h_ut)
    corner = breakpoint_distance_m(cell)
    before, after = one(cell, corner * (1 - 1e-9), True), one(cell, corner * (1 + 1e-9), True)
    assert before == pytest.approx(after, abs=1e-6)
    # 19 (UMi) or 18 (UMa) dB a decade more beyond it than before it.
    slope_before = one(cell, corner, True) - one(cell, corner / 1.001, True)
    slope_after = one(cell, corner * 1.001, True) - one(cell, corner, True)
    assert slope_after > 1.5 * slope_before


def test_nlos_is_never_below_los_even_where_its_own_formula_is() -> None:
    """UMa with a device at 12.9 m, 10 m away: 53.4 dB by the NLOS formula, 54.3 dB by LOS."""
    cell = CellSection(path_loss="uma", carrier_hz=1e9, device_height_m=12.9)
    assert one(cell, 10.0, False) == one(cell, 10.0, True) == pytest.approx(54.3, abs=0.1)


# 18/d + exp(-d/36 or -d/63) (1 - 18/d): UMi at 100 m 0.18 + 0.062177 * 0.82 = 0.230985,
# UMa at 100 m 0.18 + 0.204477 * 0.82 = 0.347671.
@pytest.mark.parametrize(
    ("model", "distance_m", "probability"),
    [
        ("umi", 10.0, 1.0),
        ("umi", 18.0, 1.0),
        ("umi", 100.0, 0.230985),
        ("uma", 100.0, 0.347671),
        ("uma", 5000.0, 0.0036),
        ("classic", 100.0, 0.0),
    ],
)
def test_los_probability(model: str, distance_m: float, probability: float) -> None:
    cell = CellSection(path_loss=model)
    assert los_probability(cell, np.array([distance_m])) == pytest.approx(probability, abs=1e-6)


def test_shadowing_deviations() -> None:
    los = np.array([True, False])
    assert shadowing_sigma_db(CellSection(path_loss="umi"), los).tolist() == [4.0, 7.82]
    assert shadowing_sigma_db(CellSection(path_loss="uma"), los).tolist() == [4.0, 6.0]
    assert shadowing_sigma_db(CellSection(path_loss="classic"), los).tolist() == [8.0, 8.0]
    assert shadowing_sigma_db(CellSection(shadowing_db=3.0), los).tolist() == [3.0, 3.0]
    assert shadowing_sigma_db(CellSection(shadowing=False, shadowing_db=3.0), los).tolist() == [
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"min_distance_m": 5.0}, "cell.min_distance_m = 5: .*'umi' asks for at least 10 m"),
        ({"radius_m": 6000.0}, "cell.radius_m = 6000: .*at most 5000 m"),
        ({"device_height_m": 1.0}, "cell.device_height_m = 1: .*from 1.5 to 22.5 m"),
        ({"path_loss": "uma", "device_height_m": 20.0}, "from 1.5 to 13 m"),
        ({"base_station_height_m": 1.0}, "cell.base_station_height_m = 1: must be above 1 m"),
        ({"path_loss": "classic", "min_distance_m": 0.1}, "'classic' asks for at least 1 m$"),
    ],
)
def test_a_geometry_outside_the_model_is_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_cell(CellSection.model_validate(keys))


def test_the_classic_model_asks_nothing_of_heights() -> None:
    check_cell(CellSection(path_loss="classic", device_height_m=0.5, radius_m=20_000.0))
