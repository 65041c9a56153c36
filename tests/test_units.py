"""Conversions: fixed points, round trips, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune import units

decibels = st.floats(-300, 300)


@pytest.mark.parametrize(("value_db", "ratio"), [(0.0, 1.0), (10.0, 10.0), (-30.0, 1e-3)])
def test_decibel_fixed_points(value_db: float, ratio: float) -> None:
    assert units.db_to_linear(value_db) == pytest.approx(ratio, rel=1e-14)
    assert units.linear_to_db(ratio) == pytest.approx(value_db, abs=1e-12)


@pytest.mark.parametrize(("power_dbm", "power_w"), [(0.0, 1e-3), (30.0, 1.0), (23.0, 0.1995262315)])
def test_dbm_fixed_points(power_dbm: float, power_w: float) -> None:
    assert units.dbm_to_watt(power_dbm) == pytest.approx(power_w, rel=1e-9)
    assert units.watt_to_dbm(power_w) == pytest.approx(power_dbm, abs=1e-8)


@given(decibels)
def test_round_trips(value: float) -> None:
    assert units.linear_to_db(units.db_to_linear(value)) == pytest.approx(value, abs=1e-9)
    assert units.watt_to_dbm(units.dbm_to_watt(value)) == pytest.approx(value, abs=1e-9)


@given(decibels, decibels)
def test_decibels_add_where_ratios_multiply(a: float, b: float) -> None:
    product = units.db_to_linear(a) * units.db_to_linear(b)
    assert units.db_to_linear(a + b) == pytest.approx(product, rel=1e-9)


def test_a_number_gives_a_number_and_an_array_an_array() -> None:
    assert isinstance(units.db_to_linear(3.0), float)
    assert units.dbm_to_watt(np.array([30.0, 0.0])) == pytest.approx([1.0, 1e-3])
    assert units.linear_to_db(np.array([1.0, 100.0])) == pytest.approx([0.0, 20.0])


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), np.array([1.0, 0.0])])
def test_what_has_no_decibels_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        units.linear_to_db(ratio)
