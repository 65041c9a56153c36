"""A channel from a CSV file: SNR or rate by round and client."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.channel import ChannelState, draw, place, rate_of_band
from airtune.channel.table import read_table
from airtune.errors import InputError
from airtune.randomness import generator
from airtune.scenario import CellSection, DeviceSection, Scenario, load_scenario

DEVICES = [DeviceSection(profile="raspberry-pi-5"), DeviceSection(profile="intel-n100")]
SNR = """round,client,snr_db
2,intel-n100-1,-3
1,raspberry-pi-5-1,20
1,intel-n100-1,10

2,1,0
"""


def drawn(folder: Path, text: str, round: int = 1, **cell_keys: object) -> ChannelState:
    path = folder / "table.csv"
    path.write_text(text)
    cell = CellSection(table=str(path), **cell_keys)  # type: ignore[arg-type]
    placement = place(cell, DEVICES, generator(0, "placement"))
    rng = generator(0, "fading", round=round)
    return draw(cell, DEVICES, placement, rng, round=round)


@pytest.mark.parametrize(
    ("round", "snr_db"), [(1, [20, 10]), (2, [0, -3]), (3, [20, 10]), (6, [0, -3])]
)
def test_snr_is_over_the_whole_band_and_rounds_start_over(
    round: int, snr_db: list[float], tmp_path: Path
) -> None:
    state = drawn(tmp_path, SNR, round, uplink_bandwidth_hz=5e6)
    assert 10 * np.log10(state.snr_hz / 5e6) == pytest.approx(np.array(snr_db))
    assert np.isinf(state.max_spectral_efficiency).all()
    assert state.received_snr_hz(0) == state.snr_hz[0]


def test_gap_and_cap_apply_and_the_downlink_follows_by_reciprocity(tmp_path: Path) -> None:
    state = drawn(tmp_path, SNR, gap_db=3.0, max_spectral_efficiency=4.0)
    assert 10 * np.log10(state.snr_hz / 20e6) == pytest.approx([17, 7])
    assert state.max_spectral_efficiency.tolist() == [4.0, 4.0]
    # 21 dB more power (44 against 23 dBm) and a receiver 4 dB worse, over an equal band.
    snr = 20e6 * 10 ** (np.array([34.0, 24.0]) / 10)
    assert state.downlink_rate_bps == pytest.approx(rate_of_band(20e6, snr, 4.0))


def test_a_rate_is_shared_like_spectrum_and_has_no_snr(tmp_path: Path) -> None:
    text = "client,round,rate_bps,downlink_rate_bps\n1,1,3e6,5e6\n2,1,60e6,7e6\n"
    state = drawn(tmp_path, text, max_spectral_efficiency=0.01)
    whole = rate_of_band(20e6, state.snr_hz, state.max_spectral_efficiency)
    tenth = rate_of_band(2e6, state.snr_hz, state.max_spectral_efficiency)
    assert whole == pytest.approx([3e6, 60e6])
    assert tenth == pytest.approx([3e5, 6e6])
    assert state.downlink_rate_bps.tolist() == [5e6, 7e6]
    assert state.received_snr_hz(0) is state.received_snr_hz(1) is None


def test_without_its_own_column_a_rates_downlink_is_what_would_be_drawn(tmp_path: Path) -> None:
    state = drawn(tmp_path, "round,client,rate_bps\n1,1,3e6\n1,2,60e6\n")
    cell = CellSection()
    placement = place(cell, DEVICES, generator(0, "placement"))
    other = draw(cell, DEVICES, placement, generator(0, "fading", round=1), round=1)
    assert state.downlink_rate_bps.tolist() == other.downlink_rate_bps.tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"table.csv, line 1: the columns ''; allowed: round,client,snr_db or"),
        ("round,client\n", "line 1: the columns 'round,client'"),
        ("round,client,snr_db,rate_bps\n", "line 1: the columns"),
        ("round,client,snr\n", "line 1: the columns"),
        ("round,client,snr_db\n", "the table has no rounds"),
        ("round,client,snr_db\n1,1,5\n", "no line for round 1 of intel-n100-1"),
        (SNR + "4,1,5\n4,2,5\n", "no line for round 3 of raspberry-pi-5-1"),
        (SNR + "3,1\n", "line 7: 2 fields; the first line names 3"),
        (SNR + "0,1,5\n", "line 7: round '0'; allowed: a whole number from 1 on"),
        (SNR + "1.5,1,5\n", "line 7: round '1.5'"),
        (SNR + "3,3,5\n", "line 7: no client '3'; allowed: raspberry-pi-5-1, .*, or 1 to 2"),
        (SNR + "3,1,loud\n", "line 7: snr_db 'loud'; allowed: dB from -200 to 200"),
        (SNR + "3,1,inf\n", "line 7: snr_db 'inf'"),
        (SNR + "1,1,5\n", "line 7: round 1 of raspberry-pi-5-1 is there twice"),
        (
            "round,client,rate_bps\n1,1,0\n",
            "line 2: rate_bps '0'; allowed: a finite number",
        ),
        ("round,client,rate_bps\n1,1,1e12\n1,2,1\n", "reaches 1e.06 Mbit/s, which no uplink of"),
        ('round,client,snr_db\n1,"1,5\n', "line 2: not CSV"),
    ],
)
def test_a_malformed_table_is_refused_with_its_line(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        drawn(tmp_path, text)


def test_a_refusal_lists_the_first_clients_alone(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("round,client,snr_db\n1,nobody,5\n")
    names = [f"client-{k}" for k in range(1000)]
    with pytest.raises(InputError) as refused:
        read_table(tmp_path / "table.csv", names, max_snr_db=200.0)
    listed = "client-0, client-1, client-2, client-3, …, or 1 to 1000"
    assert str(refused.value).endswith(f"line 2: no client 'nobody'; allowed: {listed}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cell.channel=table"], "cell: channel = 'table' needs table"),
        (
            ["cell.table=x.csv", "cell.channel=statistical"],
            "is allowed with channel = 'table' only",
        ),
    ],
)
def test_a_table_and_a_model_must_agree(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_scenario("tiny", settings)


def scenario_with(folder: Path, column: str, values: str) -> Scenario:
    (folder / "air.csv").write_text(
        f"round,client,{column}\n" + "".join(f"1,{k},{values}\n" for k in range(1, 5))
    )
    tiny = Path(at.scenario.__file__).parent / "builtin" / "tiny.toml"
    file = folder / "s.toml"
    file.write_text(tiny.read_text().replace("[cell]", '[cell]\ntable = "air.csv"'))
    return load_scenario(file, ["rounds=1", "task.eval_examples=8", "training.local_steps=1"])


@pytest.mark.parametrize(("column", "value"), [("snr_db", "3"), ("rate_bps", "2e5")])
def test_the_record_has_an_snr_only_where_one_is_known(
    column: str, value: str, tmp_path: Path
) -> None:
    record = at.run(scenario_with(tmp_path, column, value), out=tmp_path / "run")
    for client in record.rounds[0].clients:
        if column == "rate_bps":
            assert client.snr_db is None
            assert client.rate_bps == pytest.approx(2e5 * client.bandwidth_hz / 1e5)
        else:
            assert client.snr_db == pytest.approx(3 - 10 * np.log10(client.bandwidth_hz / 1e5))


def test_a_trace_leaves_no_snr_in_the_record(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.write_text("100\n")
    settings = [f"devices.1.uplink_trace={trace}", "cell.uplink_bandwidth_hz=1e6", "rounds=1"]
    record = at.run(load_scenario("tiny", settings), out=tmp_path / "run")
    assert [client.snr_db is None for client in record.rounds[0].clients] == [
        False, False, True, False,
    ]  # fmt: skip
