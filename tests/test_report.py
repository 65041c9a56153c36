"""What a record adds up to, and how figures are written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_record
from airtune.record import Record, read_record
from airtune.report import (
    comparison_rows,
    comparison_table,
    numbers,
    summary_table,
    svg,
)
from airtune.report.comparison import render_comparison
from airtune.report.page import render_run
from airtune.report.summary import client_summaries, differences, headline, time_split, totals
from fake_record import text_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_record.write_runs(tmp_path_factory.mktemp("runs"))


# Figures as people read them


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1019.6, "1,020"), (412.3, "412"), (9.996, "10.0"), (0.01234, "0.0123"),
     (-3.14159, "-3.14"), (None, "–"), (float("nan"), "–"), (float("inf"), "–")],
)  # fmt: skip
def test_digits(value: float | None, shown: str) -> None:
    assert numbers.digits(value) == shown


def test_units() -> None:
    assert numbers.seconds(412.3) == "412 s"
    assert numbers.seconds(100_000) == "27.8 h"
    assert numbers.scaled(2.936e8, "bit") == "294 Mbit"
    assert numbers.scaled(12, "bit") == "12.0 bit"
    assert numbers.percent(0.0123) == "1.2 %"
    assert numbers.gap(1e-9) == "< 0.0001 %"
    assert numbers.common_unit([2.0, 4e7], "Hz") == (1e6, "MHz")
    assert numbers.common_unit([], "Hz") == (1, "Hz")
    assert [numbers.duration(v) for v in (0, 0.001, 0.02, None)] == ["0", "< 0.01", "0.0200", "–"]
    assert numbers.counted(1, "round") == "1 round"


@given(st.floats(1e-6, 1e12), st.integers(2, 5))
def test_digits_keep_the_value(value: float, count: int) -> None:
    shown = float(numbers.digits(value, count).replace(",", ""))
    assert shown == pytest.approx(value, rel=0.5001 * 10 ** (1 - count))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 8))
def test_ticks_lie_inside_and_are_labelled_apart(low: float, width: float, wanted: int) -> None:
    high = low + width
    values = numbers.ticks(low, high, wanted)
    slack = 1e-6 * (abs(low) + width)
    assert all(low - slack <= value <= high + slack for value in values)
    assert len(values) <= 2 * wanted + 2
    if width > 1e-3 * abs(low) and width > 1e-4:
        labels = numbers.tick_labels(values)
        assert len(set(labels)) == len(labels)


@given(
    st.floats(0, 1e6, allow_subnormal=False),
    st.floats(0, 1e6, allow_subnormal=False),
    st.floats(0, 1),
)
def test_an_axis_maps_its_range_onto_its_length(low: float, width: float, part: float) -> None:
    axis = svg.axis(low, low + width, "x")
    assert axis.at(axis.low) == 0
    assert axis.at(axis.high) == pytest.approx(100)
    length = axis.high - axis.low
    inside = axis.low + part * length
    # A range of a few thousand neighbouring floats cannot be divided more finely than they lie.
    rounding = 200 * math.ulp(axis.high) / length
    assert axis.at(inside) == pytest.approx(100 * part, abs=1e-3 + rounding)


@pytest.mark.parametrize(
    ("longest", "unit"), [(0.0, "s"), (8_000.0, "s"), (20_000.0, "min"), (9e5, "h")]
)
def test_long_times_are_counted_in_larger_units(longest: float, unit: str) -> None:
    axis = svg.time_axis(longest, "virtual time")
    assert axis.title == f"virtual time ({unit})"
    divisor = {"s": 1, "min": 60, "h": 3600}[unit]
    for value, label in axis.marks:
        assert float(label.replace(",", "")) == pytest.approx(value / divisor, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 40, 500])
def test_round_ticks_are_whole_rounds(count: int) -> None:
    for value, label in svg.round_axis(count).marks:
        assert label == f"{value:,.0f}"
        assert value >= 1


# What a record adds up to


def test_a_clock_that_real_devices_kept_is_not_called_virtual(runs: Path) -> None:
    simulated = read_record(runs / "faults")
    assert totals(simulated).engine_s is None
    first, *others = simulated.rounds
    slow = tuple(replace(client, engine_s=float(k)) for k, client in enumerate(first.clients))
    measured = replace(simulated, rounds=(replace(first, clients=slow), *others))
    assert totals(measured).engine_s == len(slow) - 1
    assert "measured on the devices" in headline(measured)
    page = render_run(measured)
    assert "Measured time" in page
    assert "virtual clock: counted" not in page
    assert "virtual clock: counted" in render_run(simulated)


def test_totals_are_the_sums_of_the_record(runs: Path) -> None:
    record = read_record(runs / "faults")
    total = totals(record)
    assert total.virtual_time_s == record.rounds[-1].elapsed_s
    assert total.none_time_s == pytest.approx(sum(r.none_latency_s or 0 for r in record.rounds))
    assert total.uplink_bits == pytest.approx(
        sum(client.uplink_bits for r in record.rounds for client in r.clients)
    )
    assert (total.updates, total.merged) == (48, 45)
    assert total.initial_loss == 1.6604
    assert total.final_loss == record.rounds[-1].eval_loss


def test_a_missing_figure_is_not_summed_over(runs: Path) -> None:
    record = read_record(runs / "exact")
    broken = replace(record.rounds[2], none_latency_s=None)
    record = replace(record, rounds=(*record.rounds[:2], broken, *record.rounds[3:]))
    assert totals(record).none_time_s is None
    assert "would have taken" not in headline(record)


def test_the_headline_says_what_the_record_says(runs: Path) -> None:
    record = read_record(runs / "exact")
    total = totals(record)
    none = sum(r.none_latency_s or 0 for r in record.rounds)
    assert headline(record) == (
        f"6 rounds in {record.rounds[-1].elapsed_s:.0f} s of virtual time, test loss 1.660 → "
        f"{record.rounds[-1].eval_loss:.3f}; without pruning and with equal bandwidth the same "
        f"rounds would have taken {none:.0f} s, {none / total.virtual_time_s:.1f} times as long; "
        "the loss they would have ended at is not known"
    )
    assert "would have taken" not in headline(read_record(runs / "none"))
    unfinished = replace(record, rounds=record.rounds[:2], status="running")
    assert headline(unfinished).startswith("2 of 6 rounds in ")
    assert headline(replace(record, rounds=())) == "No round has ended yet"


def test_who_waits_for_devices_waits_without_pruning_too(runs: Path) -> None:
    record = read_record(runs / "exact")
    waited = replace(record.rounds[0], waited_s=1000.0)
    later = [replace(one, elapsed_s=one.elapsed_s + 1000.0) for one in record.rounds[1:]]
    longer = replace(record, rounds=(replace(waited, elapsed_s=waited.elapsed_s + 1000.0), *later))
    before, after = totals(record), totals(longer)
    assert before.none_time_s is not None
    assert after.none_time_s == pytest.approx(before.none_time_s + 1000.0)
    assert after.virtual_time_s == pytest.approx(before.virtual_time_s + 1000.0)


def test_clients_are_summarised_by_their_own_rounds(runs: Path) -> None:
    record = read_record(runs / "faults")
    clients = client_summaries(record)
    assert [client.number for client in clients] == list(range(1, 9))
    assert sum(client.times_last for client in clients) == len(record.rounds)
    assert [client.left_out for client in clients] == [0] * 7 + [3]
    own = [r.clients[3] for r in record.rounds]
    assert clients[3].name == own[0].name
    assert clients[3].upload_s == pytest.approx(sum(c.upload_s for c in own) / 6)


def test_comparison_finds_the_first_round_at_the_common_target(runs: Path) -> None:
    records = {name: read_record(runs / name) for name in ("exact", "none")}
    rows = {row["name"]: row for row in comparison_rows(records)}
    best = {name: min(r.eval_loss or 9 for r in rec.rounds) for name, rec in records.items()}
    for name, row in rows.items():
        assert row["target_loss"] == max(best.values())
        reached = [r for r in records[name].rounds if (r.eval_loss or 9) <= row["target_loss"]]
        assert row["rounds_to_target"] == reached[0].round
        assert row["time_to_target_s"] == reached[0].elapsed_s
        assert row["uplink_bits_to_target"] == pytest.approx(
            sum(r.uplink_bits for r in records[name].rounds[: reached[0].round])
        )
    assert rows["exact"]["time_to_target_s"] < rows["none"]["time_to_target_s"]
    json.dumps(list(rows.values()), allow_nan=False)


def with_losses(record: Record, losses: list[float | None]) -> Record:
    """The record with these losses, rounds of 10 s and an uplink of 100 bit each."""
    rounds = tuple(
        replace(r, round=i, eval_loss=loss, elapsed_s=10.0 * i, uplink_bits=100.0)
        for i, (r, loss) in enumerate(zip(record.rounds, losses, strict=False), start=1)
    )
    return replace(record, rounds=rounds)


def test_comparison_by_hand(runs: Path) -> None:
    record = read_record(runs / "exact")
    rows = comparison_rows(
        {
            # Reaches 1.2 on its way, leaves it, and comes back; its best is 1.0.
            "wavering": with_losses(record, [1.5, 1.2, 1.4, None, 1.0]),
            # Its best, 1.3, is the worst of the bests: the target.
            "slow": with_losses(record, [1.6, None, 1.4, 1.3, 1.35, 1.36]),
        }
    )
    keys = ("target_loss", "rounds_to_target", "time_to_target_s", "uplink_bits_to_target")
    assert [[row[key] for key in keys] for row in rows] == [
        [1.3, 2, 20.0, 200.0],
        [1.3, 4, 40.0, 400.0],
    ]
    assert [(row["best_loss"], row["final_loss"]) for row in rows] == [(1.0, 1.0), (1.3, 1.36)]


def test_the_time_is_split_as_whom_each_round_waited_for_spent_it(runs: Path) -> None:
    record = read_record(runs / "none")
    a, b = record.rounds[0].clients[:2]
    slow = replace(a, downlink_s=1.0, compute_s=2.0, upload_s=7.0, total_s=10.0)
    quick = replace(b, downlink_s=1.0, compute_s=3.0, upload_s=0.0, total_s=4.0)
    slower = replace(b, downlink_s=3.0, compute_s=8.0, upload_s=1.0, total_s=12.0)
    rounds = (
        replace(record.rounds[0], clients=(slow, quick)),
        replace(record.rounds[1], clients=(slow, slower)),
    )
    assert time_split(replace(record, rounds=rounds)) == (2.0, 5.0, 4.0)
    assert sum(time_split(record)) * 6 == pytest.approx(record.rounds[-1].elapsed_s)
    assert time_split(replace(record, rounds=())) == (0.0, 0.0, 0.0)


def test_who_sits_out_is_neither_left_out_nor_in_the_means(runs: Path) -> None:
    record = read_record(runs / "exact")
    idle = replace(
        record.rounds[0].clients[0],
        status="sat out", pruning=1.0, bandwidth_hz=0.0, compute_s=0.0, upload_s=0.0, total_s=0.0,
    )  # fmt: skip
    first = replace(record.rounds[0], clients=(idle, *record.rounds[0].clients[1:]))
    record = replace(record, rounds=(first, *record.rounds[1:]))
    client = client_summaries(record)[0]
    others = [r.clients[0].pruning for r in record.rounds[1:]]
    assert client.pruning == pytest.approx(sum(others) / 5)
    assert (client.sat_out, client.left_out) == (1, 0)
    assert (totals(record).updates, totals(record).merged) == (47, 47)
    html = text_of(render_run(record))
    assert "Updates that were left out" not in html
    assert "every update merged" in html
    always = replace(record, rounds=(first,))
    assert client_summaries(always)[0].bandwidth_hz == 0


def test_a_run_that_measured_no_loss_has_no_target(runs: Path) -> None:
    records = {name: read_record(runs / name) for name in ("exact", "none")}
    blind = tuple(replace(r, eval_loss=None) for r in records["none"].rounds)
    records["none"] = replace(records["none"], rounds=blind)
    assert {row["time_to_target_s"] for row in comparison_rows(records)} == {None}


def test_differences_are_the_keys_that_differ(runs: Path) -> None:
    records = {name: read_record(runs / name) for name in ("exact", "none")}
    assert differences(records) == ["planning.method"]
    scenario = json.loads(json.dumps(records["none"].scenario))
    scenario["devices"][1]["count"] += 1
    records["none"] = replace(records["none"], scenario=scenario)
    assert set(differences(records)) == {"devices.1.count", "planning.method"}
    html = text_of(render_comparison(records))
    assert "key exact none devices.1.count 2 3 planning.method exact none" in html


def test_console_tables_hold_the_figures(runs: Path) -> None:
    from rich.console import Console

    record = read_record(runs / "exact")
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(summary_table(record))
        console.print(comparison_table({"exact": record, "none": read_record(runs / "none")}))
        shown = console.export_text()
    for client in record.rounds[0].clients:
        assert client.name in shown
    assert numbers.loss(record.rounds[-1].eval_loss) in shown
