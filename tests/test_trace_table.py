"""Traces as tables: units, columns, gaps, refusals; a round's rate against slow integration."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from airtune.channel.trace import PACKET_BITS, WINDOW_MS, RateTrace, Trace, read_trace
from airtune.channel.trace_picture import summary_of
from airtune.cli import app
from airtune.errors import InputError
from airtune.scenario import load_scenario


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str) -> Trace:
    return read_trace(written(folder, text))


def rate_trace(holds_ms: list[int], rates_bps: list[float]) -> RateTrace:
    edges = np.concatenate([[0.0], np.cumsum(holds_ms)])
    return RateTrace("made", edges, np.array(rates_bps))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("Mbit/s", 1e6),
        ("rate_mbit_s", 1e6),
        ("throughput (Mbps)", 1e6),
        ("mbps", 1e6),
        ("tput [kbps]", 1e3),
        ("rate_bps", 1.0),
        ("bit/s", 1.0),
        ("Gbit/s", 1e9),
        ("MB/s", 8e6),
        ("rx_MBps", 8e6),
        ("kB/s", 8e3),
        ("bytes/s", 8.0),
        ("speed_Mbits_per_s", 1e6),
    ],
)
def test_a_rate_is_read_in_its_unit(tmp_path: Path, name: str, factor: float) -> None:
    trace = read(tmp_path, f"time_s,{name}\n0,2\n10,2\n")
    assert trace.mean_bps(0, trace.period_ms) == pytest.approx(2 * factor)


@pytest.mark.parametrize(
    ("name", "step_s"), [("time_s", 1), ("t (ms)", 1e-3), ("min", 60), ("elapsed_us", 1e-6)]
)
def test_a_time_is_read_in_its_unit(tmp_path: Path, name: str, step_s: float) -> None:
    trace = read(tmp_path, f"{name}\tMbit/s\n5\t1\n6\t1\n7\t1\n")
    assert trace.period_ms == pytest.approx(3000.0 * step_s)


@pytest.mark.parametrize(
    "text", ["0,8\n10,4\n", "0 8\n10 4\n", "# s and Mbit/s\n\n0;8\n# a comment\n10;4\n"]
)
def test_without_names_the_columns_are_seconds_and_mbit_s(tmp_path: Path, text: str) -> None:
    trace = read(tmp_path, text)
    assert [trace.round_rate_bps(r) for r in range(3)] == pytest.approx([8e6, 4e6, 8e6])


def test_other_columns_and_the_order_do_not_matter(tmp_path: Path) -> None:
    trace = read(tmp_path, "cell,Mbit/s,lat,time_s\nA,8,1.5,100\nB,4,x,110\n")
    assert trace.round_rate_bps(0) == pytest.approx(8e6)


def test_the_direction_or_a_name_picks_one_of_several_rates(tmp_path: Path) -> None:
    path = written(tmp_path, "time_s,download_mbit_s,upload_mbit_s\n0,90,10\n10,90,10\n")
    assert read_trace(path, "uplink").round_rate_bps(0) == pytest.approx(10e6)
    assert read_trace(path, "downlink").round_rate_bps(0) == pytest.approx(90e6)
    assert read_trace(f"{path}#download_mbit_s", "uplink").round_rate_bps(0) == pytest.approx(90e6)
    with pytest.raises(InputError, match=r"'upload_mbit_s' are rates; name the one"):
        read_trace(path)
    with pytest.raises(InputError, match=r"no column of rates 'up'; allowed: 'download_mbit_s'"):
        read_trace(f"{path}#up")


def test_a_gap_is_left_out_and_said(tmp_path: Path) -> None:
    # Rows a second apart; then 100 s without any, and one row without a rate.
    rows = [*((t, "1") for t in range(5)), *((t, "3") for t in range(104, 109)), (109, "nan")]
    text = "time_s,Mbit/s\n" + "".join(f"{t},{rate}\n" for t, rate in rows)
    trace = read(tmp_path, text)
    assert trace.period_ms == pytest.approx(10_000)
    assert trace.round_rate_bps(0) == pytest.approx(2e6)
    found = summary_of(trace)
    assert (found["gaps"], found["gaps_s"]) == (2, pytest.approx(99.0 + 1.0))
    assert found["outages"] == 0


def test_rows_of_one_time_are_averaged_and_zeros_are_outages(tmp_path: Path) -> None:
    trace = read(tmp_path, "time_s,Mbit/s\n0,2\n0,4\n1,0\n2,0\n3,5\n4,0\n")
    found = summary_of(trace)
    assert found["duration_s"] == pytest.approx(5.0)
    assert found["mean_bps"] == pytest.approx((3 + 5) * 1e6 / 5)
    assert (found["outages"], found["outages_s"], found["longest_outage_s"]) == (2, 3.0, 2.0)


def test_an_outage_waits_for_one_packet() -> None:
    # 1 Mbit/s for 1 s, then nothing for 99 s: round 1 waits from 10 s to 100 s and 12 ms.
    trace = rate_trace([1000, 99_000], [1e6, 0.0])
    assert trace.round_rate_bps(1) == pytest.approx(PACKET_BITS / 90.012)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 4000), st.sampled_from([0.0, 5e3, 1e6])), min_size=1, max_size=12
    ).filter(lambda rows: any(rate for _, rate in rows)),
    start_ms=st.integers(0, 50_000),
    round=st.integers(0, 4),
)
def test_against_slow_integration(rows: list[tuple[int, float]], start_ms: int, round: int) -> None:
    holds, rates = map(list, zip(*rows, strict=True))
    trace = rate_trace(holds, rates)
    # One value a millisecond, repetitions laid end to end.
    period = np.repeat(rates, holds) / 1000.0
    begin = (start_ms + round * WINDOW_MS) % len(period)
    loops = 3 + int((WINDOW_MS + PACKET_BITS / period.sum() * len(period)) / len(period))
    bits = np.cumsum(np.tile(period, loops)[begin:])
    found = trace.round_rate_bps(round, start_ms=start_ms)
    window = bits[WINDOW_MS - 1]
    if window >= PACKET_BITS:
        assert found == pytest.approx(window / (WINDOW_MS / 1000), rel=1e-9)
    else:
        waited_ms = int(np.searchsorted(bits, PACKET_BITS * (1 - 1e-12))) + 1
        assert found == pytest.approx(PACKET_BITS * 1000 / waited_ms, rel=2e-4)
    assert found <= trace.busiest_rate_bps() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time_s,Mbit/s\n0,1\n2,1\n1,1\n", "line 4: time 1 s comes after 2 s"),
        ("time_s,Mbit/s\n0,0\n1,0\n", "no rate is above 0"),
        ("time_s,Mbit/s\n0,-1\n1,2\n", "line 2: Mbit/s = '-1'; allowed: from 0"),
        ("time_s,Mbit/s\n0,fast\n1,2\n", "line 2: Mbit/s = 'fast' is not a finite number"),
        ("time_s,Mbit/s\n0,inf\n1,2\n", "line 2: Mbit/s = 'inf' is not a finite number"),
        ("time_s,Mbit/s\nnoon,1\n", "line 2: time = 'noon' is not a finite number"),
        ("time_s,Mbit/s\n0,1,2\n", "line 2: 3 columns, the first line has 2"),
        ("time_s,Mbit/s\n0,1\n", "rows of two different times"),
        ("time_s,Mbit/s\n", "rows of two different times"),
        ("time_s,rate_furlongs\n0,1\n", "line 1: column 'rate_furlongs' says no known unit"),
        ("time,throughput_mbps\n0,1\n", "line 1: column 'time' says no known unit"),
        ("# x\ntime_s,lat\n0,1\n", "line 2: the columns 'time_s,lat', of which 1 are times"),
        ("throughput_mbps\n1\n2\n", "line 1: the columns 'throughput_mbps', of which 0"),
        ("1.5,2.5,3.5\n", "line 1: 3 columns without names"),
        ("time_s,Mbit/s,Mbit/s\n0,1,1\n", "two columns of rates have the same name"),
        ("time_s,t_ms,Mbit/s\n0,0,1\n", "of which 2 are times"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        read(tmp_path, text)
    assert str(tmp_path) in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


def test_a_scenario_names_a_column_of_a_file_beside_it(tmp_path: Path) -> None:
    path = written(tmp_path, "time_s,down_mbps,up_mbps\n0,90,10\n10,90,10\n")
    scenario = tmp_path / "s.toml"
    text = (
        'name = "s"\n[[devices]]\nprofile = "raspberry-pi-5"\nuplink_trace = "trace.csv#up_mbps"\n'
    )
    scenario.write_text(text, encoding="utf-8")
    assert load_scenario(scenario).devices[0].uplink_trace == f"{path.resolve()}#up_mbps"


def test_the_command_shows_what_was_read_and_draws_it(tmp_path: Path) -> None:
    path = written(tmp_path, "time_s,down_mbps,up_mbps\n0,90,10\n10,90,0\n20,90,5\n")
    picture = tmp_path / "trace.svg"
    made = CliRunner().invoke(app, ["trace", str(path), "--out", str(picture), "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.output)["traces"]
    assert [row["column"] for row in found] == ["down_mbps", "up_mbps"]
    assert (found[1]["duration_s"], found[1]["mean_bps"]) == (30.0, 5e6)
    assert (found[1]["outages"], found[1]["outages_s"]) == (1, 10.0)
    assert picture.read_text(encoding="utf-8").lstrip().startswith("<?xml")
    said = CliRunner().invoke(app, ["trace", f"{path}#up_mbps"]).output
    assert "table: time_s, up_mbps" in said
    assert "outages    1, 10 s together (33 %)" in said
    packets = tmp_path / "packets"
    packets.write_text("1\n2000\n", encoding="utf-8")
    assert "mahimahi" in CliRunner().invoke(app, ["trace", str(packets)]).output
    refused = CliRunner().invoke(app, ["trace", str(path), "--out", str(tmp_path / "a.pdf")])
    assert isinstance(refused.exception, InputError)
