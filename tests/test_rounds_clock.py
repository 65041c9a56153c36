"""The clock of rounds that are not synchronous: uploads that share a band, by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.channel.rate import rate_of_band
from airtune.planning.sharing import shared_bands
from airtune.rounds.clock import Turn, advance, arrays_of
from airtune.units import FloatArray

BAND_HZ = 100.0
STRONG = 1e30
"""So much power that the cap of 1 bit/s/Hz alone decides: a rate is then its band."""


def turn(client: int, ready_s: float, bits: float, *, snr_hz: float = STRONG) -> Turn:
    cap = 1.0 if snr_hz == STRONG else None
    return Turn(client, 1, 0, 0.0, 0.25 * ready_s, 0.75 * ready_s, bits, snr_hz, cap)


def bands(sending: Sequence[Turn], *, equal: bool) -> FloatArray:
    return shared_bands(BAND_HZ, *arrays_of(sending), equal=equal)


def followed(turns: Sequence[Turn], *, equal: bool) -> tuple[tuple[Turn, ...], list[float]]:
    """Return the turns at their ends, and the times of the events."""
    now_s, times, there = 0.0, [], tuple(turns)
    while any(one.ended_s is None for one in there):
        now_s, there = advance(there, now_s, partial(bands, equal=equal))
        times.append(now_s)
        assert len(times) < 1000
    return there, times


def test_a_band_that_is_split_alike_is_split_anew_at_every_event() -> None:
    """100 Hz for the first; 50 each from 2 s on; the first ends at 4 s; 100 for the second."""
    ended, times = followed([turn(0, 0.0, 300.0), turn(1, 2.0, 200.0)], equal=True)
    assert times == pytest.approx([2.0, 4.0, 5.0])
    assert [one.ended_s for one in ended] == pytest.approx([4.0, 5.0])
    assert [one.band_hz_s for one in ended] == pytest.approx([300.0, 200.0])


def test_a_planned_band_lets_what_is_left_end_together() -> None:
    """From 2 s on 100 and 300 bits are left: 25 and 75 Hz, and both end at 6 s."""
    ended, times = followed([turn(0, 0.0, 300.0), turn(1, 2.0, 300.0)], equal=False)
    assert times == pytest.approx([2.0, 6.0])
    assert [one.ended_s for one in ended] == pytest.approx([6.0, 6.0])
    split = bands([turn(0, 0.0, 100.0), turn(1, 2.0, 300.0)], equal=False)
    assert split == pytest.approx([25.0, 75.0])


def test_who_computes_takes_no_band_and_uploads_that_end_together_are_one_event() -> None:
    ended, times = followed(
        [turn(0, 1.0, 100.0), turn(1, 1.0, 100.0), turn(2, 9.0, 50.0)], equal=True
    )
    assert times == pytest.approx([1.0, 3.0, 9.0, 9.5])
    assert [one.ended_s for one in ended] == pytest.approx([3.0, 3.0, 9.5])


def test_a_turn_without_bits_ends_where_it_would_send_and_takes_no_band() -> None:
    ended, _ = followed([turn(0, 1.0, 0.0), turn(1, 1.0, 100.0)], equal=True)
    assert [one.ended_s for one in ended] == pytest.approx([1.0, 2.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 5.0), st.floats(1.0, 1e4), st.floats(1.0, 1e4)),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_bits_and_band_are_conserved(parts: list[tuple[float, float, float]], equal: bool) -> None:
    """Each upload's rate times time is its size; the bands fill the uplink while anyone sends."""
    there = tuple(turn(k, t, bits, snr_hz=s) for k, (t, bits, s) in enumerate(parts))
    sent, busy_s, now_s = np.zeros(len(parts)), 0.0, 0.0
    while any(one.ended_s is None for one in there):
        sending = [t for t in there if t.ended_s is None and t.ready_s <= now_s]
        next_s, after = advance(there, now_s, partial(bands, equal=equal))
        assert next_s >= now_s
        if sending:
            hz = bands(sending, equal=equal)
            assert hz.sum() == pytest.approx(BAND_HZ, rel=1e-6)
            for one, band in zip(sending, hz.tolist(), strict=True):
                sent[one.client] += float(rate_of_band(band, one.snr_hz)) * (next_s - now_s)
            busy_s += next_s - now_s
        now_s, there = next_s, after
    assert sent == pytest.approx([bits for _, bits, _ in parts], rel=1e-6)
    assert sum(one.band_hz_s for one in there) == pytest.approx(BAND_HZ * busy_s, rel=1e-6)
    assert [one.sent_bits for one in there] == [one.uplink_bits for one in there]


def test_a_planned_band_ends_sooner_than_an_equal_one_where_all_begin_together() -> None:
    parts = [turn(0, 0.0, 1e4, snr_hz=50.0), turn(1, 0.0, 1e4, snr_hz=5e3)]
    planned, _ = followed(parts, equal=False)
    alike, _ = followed(parts, equal=True)
    assert max(t.ended_s or 0.0 for t in planned) < max(t.ended_s or 0.0 for t in alike)
