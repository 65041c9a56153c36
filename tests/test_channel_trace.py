"""Mahimahi traces: reading, refusals, and the capacity of a round against slow counting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.channel import generated
from airtune.channel.trace import PACKET_BITS, WINDOW_MS, PacketTrace, RateTrace, read_trace
from airtune.errors import InputError


def trace_of(*timestamps_ms: int) -> PacketTrace:
    return PacketTrace("made", np.array(timestamps_ms, dtype=np.int64))


def slow_rate_bps(timestamps_ms: list[int], begin_ms: int) -> float:
    """Lay repetitions end to end and count, packet by packet."""
    times, loop = [], 0
    while not times or times[-1] <= begin_ms + 2 * WINDOW_MS + timestamps_ms[-1]:
        times += [loop * timestamps_ms[-1] + t for t in timestamps_ms]
        loop += 1
    inside = [t for t in times if begin_ms < t <= begin_ms + WINDOW_MS]
    if inside:
        return len(inside) * PACKET_BITS / (WINDOW_MS / 1000)
    waited_ms = min(t for t in times if t > begin_ms) - begin_ms
    return PACKET_BITS / (waited_ms / 1000)


@pytest.mark.parametrize("round", [0, 1, 7])
def test_one_packet_a_millisecond_is_12_mbit_a_second(tmp_path: Path, round: int) -> None:
    path = tmp_path / "12Mbps"
    path.write_text("1\n")
    assert read_trace(path).round_rate_bps(round) == 12e6


def test_rounds_see_successive_windows_and_the_trace_starts_over() -> None:
    # 10 s at one packet every 10 ms, then 10 s at one every 5 ms.
    trace = trace_of(*range(10, WINDOW_MS + 1, 10), *range(WINDOW_MS + 5, 2 * WINDOW_MS + 1, 5))
    rates = [trace.round_rate_bps(r) for r in range(4)]
    assert rates == [1.2e6, 2.4e6, 1.2e6, 2.4e6]
    assert trace.round_rate_bps(0, start_ms=WINDOW_MS // 2) == pytest.approx(1.8e6)


def test_an_outage_is_a_low_rate_and_never_none() -> None:
    # Nothing between 1 ms and 100 s: round 1 waits from 10 s to 100 s for its packet.
    trace = trace_of(1, 100_000)
    assert trace.round_rate_bps(1) == pytest.approx(PACKET_BITS / 90.0)


@given(
    gaps=st.lists(st.integers(0, 4000), min_size=1, max_size=30).filter(any),
    start_ms=st.integers(0, 50_000),
    round=st.integers(0, 5),
)
def test_against_slow_counting(gaps: list[int], start_ms: int, round: int) -> None:
    timestamps = np.cumsum(gaps)
    trace = trace_of(*timestamps)
    rate = trace.round_rate_bps(round, start_ms=start_ms)
    expected = slow_rate_bps(timestamps.tolist(), start_ms + round * WINDOW_MS)
    assert rate == pytest.approx(expected, rel=1e-12)
    assert rate <= trace.busiest_rate_bps()


@given(gaps=st.lists(st.integers(1, 50), min_size=1, max_size=20), first=st.integers(0, 99))
def test_windows_over_many_loops_average_to_the_trace_s_mean(gaps: list[int], first: int) -> None:
    timestamps = np.cumsum(gaps)
    trace = trace_of(*timestamps)
    rates = [trace.round_rate_bps(first + r) for r in range(trace.period_ms)]
    mean = len(gaps) * PACKET_BITS / (trace.period_ms / 1000)
    assert np.mean(rates) == pytest.approx(mean, rel=1e-9)


def test_repeated_timestamps_and_trailing_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text("0\n5\n5\n10\n\n\n")
    trace = read_trace(path)
    assert trace.timestamps_ms.tolist() == [0, 5, 5, 10]
    assert trace.period_ms == 10
    with pytest.raises(ValueError, match="read-only"):
        trace.timestamps_ms[0] = 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the trace is empty"),
        ("\n \n", "the trace is empty"),
        ("1\ntwo\n3\n", "line 2: 'two' is not a timestamp in whole milliseconds"),
        ("1\n2.5\n", "line 2: '2.5' is not"),
        ("1\n-4\n", "line 2: '-4' is not"),
        ("1\n\n3\n", "line 2: '' is not"),
        ("1\n²\n", "line 2: '²' is not"),
        ("1\n" + "9" * 30, "line 2: '9+' is not"),
        ("1\n" + "9" * 10_000, "line 2: '9+' is not"),
        ("5\n9\n7\n", "line 3: 7 ms comes after 9 ms"),
        ("0\n0\n", "all timestamps are 0 ms"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as refusal:
        read_trace(path)
    assert str(path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_trace_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read trace .*No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(InputError, match="cannot read trace"):
        read_trace(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        read_trace(tmp_path / "binary")


def test_the_generated_trace_has_the_outages_and_the_rate_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = read_trace("generated-drive")
    assert isinstance(trace, RateTrace)
    out = trace.rates_bps == 0
    # Two-state chain: out a share b/(b + e) of the time; about one beginning in 1/b + 1/e seconds.
    begins, ends = generated.OUTAGE_BEGINS, generated.OUTAGE_ENDS
    assert out.mean() == pytest.approx(begins / (begins + ends), abs=0.06)
    assert len(trace.outages_s()) == pytest.approx(900 / (1 / begins + 1 / ends), abs=7)
    logs = np.log(trace.rates_bps[~out] / generated.MEDIAN_BPS)
    assert abs(logs.mean()) < 0.25
    assert logs.std() == pytest.approx(generated.SPREAD, abs=0.15)
    # Neighbours are alike, and the same name is the same trace.
    assert np.corrcoef(logs[:-1], logs[1:])[0, 1] > 0.75
    again = read_trace("generated-drive")
    assert isinstance(again, RateTrace)
    assert np.array_equal(again.rates_bps, trace.rates_bps)
    # A file of that name is the user's own.
    (tmp_path / "generated-drive").write_text("1\n")
    monkeypatch.chdir(tmp_path)
    assert read_trace("generated-drive").round_rate_bps(0) == 12e6
