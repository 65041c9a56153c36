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


@given(decibels)
def test_round_trip(value: float) -> None:
    assert units.linear_to_db(units.db_to_linear(value)) == pytest.approx(value, abs=1e-9)


@given(decibels, decibels)
def test_decibels_add_where_ratios_multiply(a: float, b: float) -> None:
    product = units.db_to_linear(a) * units.db_to_linear(b)
    assert units.db_to_linear(a + b) == pytest.approx(product, rel=1e-9)


def test_a_number_gives_a_number_and_an_array_an_array() -> None:
    assert isinstance(units.db_to_linear(3.0), float)
    assert units.db_to_linear(np.array([30.0, 0.0])) == pytest.approx([1e3, 1.0])
    assert units.linear_to_db(np.array([1.0, 100.0])) == pytest.approx([0.0, 20.0])


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), np.array([1.0, 0.0])])
def test_what_has_no_decibels_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        units.linear_to_db(ratio)
