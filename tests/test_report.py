from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_record
from airtune.errors import InputError, RunError
from airtune.record import Record, RunDirectory, read_record
from airtune.report import (
    comparison_rows,
    comparison_table,
    numbers,
    summary_table,
    svg,
    write_comparison,
    write_report,
)
from airtune.report.comparison import render_comparison
from airtune.report.page import render_run, toml_text
from airtune.report.summary import client_summaries, differences, headline, time_split, totals
from airtune.scenario import scenario_from_dict


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for method in ("exact", "bcd", "none"):
        fake_record.write_run(folder / method, method=method)
    fake_record.write_run(folder / "faults", faults=True)
    return folder


def text_of(page: str) -> str:
    """What a reader sees: without the markup."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


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
        f"rounds would have taken {none:.0f} s, {none / total.virtual_time_s:.1f} times as long"
    )
    assert "would have taken" not in headline(read_record(runs / "none"))
    assert headline(replace(record, rounds=record.rounds[:2])).startswith("2 of 6 rounds in ")
    assert headline(replace(record, rounds=())) == "No round has ended yet"


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


# Pages


@pytest.mark.parametrize(("clients", "rounds"), [(8, 6), (32, 40), (1, 1)])
def test_a_page_has_every_figure_and_names_every_client(
    tmp_path: Path, clients: int, rounds: int
) -> None:
    fake_record.write_run(tmp_path / "run", clients=clients, rounds_=rounds)
    page = write_report(tmp_path / "run")
    html = page.read_text()
    ids = re.findall(r'<figure id="([^"]+)"', html)
    assert {
        "loss-over-time", "loss-over-rounds", "metrics", "latency", "timeline", "pruning",
        "bandwidth", "cell", "data",
    } <= set(ids)  # fmt: skip
    every_id = re.findall(r' id="([^"]+)"', html)
    assert len(every_id) == len(set(every_id))
    record = read_record(tmp_path / "run")
    assert headline(record) in text_of(html)
    for client in record.rounds[0].clients:
        assert client.name in text_of(html)
    assert len(html) < 800_000
    assert "nan" not in re.findall(r'(?:x|y|d|width|height|r)="([^"]*)"', html.lower())


def figure_of(html: str, id: str) -> str:
    found = re.search(rf'<figure id="{id}".*?</figure>', html, flags=re.S)
    assert found is not None
    return found[0]


def share(values: list[float]) -> list[float]:
    """The values on a scale from the first (0) to the last (1): what a linear axis keeps."""
    return [(value - values[0]) / (values[-1] - values[0]) for value in values]


def lengths(kind: str, key: str, drawing: str) -> list[float]:
    rects = re.findall(rf'<rect class="{kind}"[^>]*>', drawing)
    return [float(re.findall(rf'{key}="([0-9.]+)%"', rect)[0]) for rect in rects]


def test_lines_run_through_the_recorded_losses(runs: Path) -> None:
    record = read_record(runs / "bcd")
    losses = [1.6604, *(r.eval_loss or 0 for r in record.rounds)]
    ends = [0.0, *(r.elapsed_s for r in record.rounds)]
    html = render_run(record)
    both = render_comparison({"a": record, "b": read_record(runs / "none")})
    for drawing, xs in (
        (figure_of(html, "loss-over-time"), ends),
        (figure_of(html, "loss-over-rounds"), list(map(float, range(7)))),
        (figure_of(both, "losses-over-time"), ends),
    ):
        path = re.findall(r'<path class="line s1 d1" d="M([^"]*)"', drawing)[-1]
        points = [[float(v) for v in point.split()] for point in path.split("L")]
        assert share([x for x, _ in points]) == pytest.approx(share(xs), abs=1e-3)
        assert share([y for _, y in points]) == pytest.approx(share(losses), abs=1e-3)
        assert points[0][1] < points[-1][1], "a falling loss has to fall on the page"


def test_bars_are_as_long_as_what_they_show(runs: Path) -> None:
    record = read_record(runs / "bcd")
    html = render_run(record)
    drawing = figure_of(html, "latency")
    longest = record.rounds[0].round_latency_s
    unit = lengths("realised", "height", drawing)[0] / longest
    for kind, values in (
        ("realised", [r.round_latency_s for r in record.rounds]),
        ("none", [r.none_latency_s or 0 for r in record.rounds]),
    ):
        assert lengths(kind, "height", drawing) == pytest.approx(
            [unit * value for value in values], abs=0.01
        )
    drawing = figure_of(html, "timeline")
    final = record.rounds[-1].clients
    unit = lengths("download", "width", drawing)[0] / final[0].downlink_s
    for kind, values in (
        ("download", [c.downlink_s for c in final]),
        ("compute", [c.compute_s for c in final]),
        ("upload", [c.upload_s for c in final]),
    ):
        assert lengths(kind, "width", drawing) == pytest.approx(
            [unit * value for value in values], abs=0.01
        )
    others = read_record(runs / "none")
    drawing = figure_of(render_comparison({"a": record, "b": others}), "time-splits")
    splits = [time_split(record), time_split(others)]
    unit = lengths("download", "width", drawing)[0] / splits[0][0]
    for phase, kind in enumerate(("download", "compute", "upload")):
        expected = [unit * split[phase] for split in splits]
        assert lengths(kind, "width", drawing) == pytest.approx(expected, abs=0.01)


def test_heat_maps_are_darkest_where_the_record_is_largest(runs: Path) -> None:
    record = read_record(runs / "bcd")
    drawing = figure_of(render_run(record), "bandwidth")
    values = [c.bandwidth_hz for r in record.rounds for c in r.clients]
    shades = [float(v) for v in re.findall(r'fill-opacity="([0-9.]+)"', drawing)]
    expected = [0.04 + 0.96 * value / max(values) for value in values]
    assert shades == pytest.approx(expected, abs=1e-3)


def cells(html: str, id: str) -> list[list[str]]:
    table = re.search(rf'<table id="{id}".*?</table>', html, flags=re.S)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table[0].split("<tbody>")[1], flags=re.S)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_tables_hold_the_record(tmp_path: Path) -> None:
    record = read_record(fake_record.write_run(tmp_path / "run", method="bcd", faults=True))
    html = render_run(record)
    for row, r in zip(cells(html, "rounds"), record.rounds, strict=True):
        numeric = [float(cell.replace(",", "")) for cell in row[:11]]
        assert numeric == pytest.approx(
            [
                r.round, r.round_latency_s, r.predicted_latency_s, r.none_latency_s, r.elapsed_s,
                r.eval_loss, r.train_loss, r.pruning_loss, r.kappa, r.objective_s, r.lower_bound_s,
            ],
            rel=5e-3,
        )  # fmt: skip
        assert row[12] == numbers.scaled(sum(c.uplink_bits for c in r.clients), "bit")
    for k, row in enumerate(cells(html, "clients")):
        own = [r.clients[k] for r in record.rounds]
        assert row[1] == own[0].name
        assert float(row[5]) == pytest.approx(100 * sum(c.pruning for c in own) / 6, rel=0.05)
        assert float(row[10]) == pytest.approx(sum(c.upload_s for c in own) / 6, rel=5e-3)
        assert int(row[14]) == sum(c.status != "ok" for c in own)


def test_every_drawing_has_a_name_for_those_who_do_not_see_it(runs: Path) -> None:
    for page in (
        write_report(runs / "bcd"),
        write_comparison({"a": runs / "exact", "b": runs / "none"}, runs / "both.html"),
    ):
        for figure in re.findall(r"<figure.*?</figure>", page.read_text(), flags=re.S):
            assert re.search(r'<svg role="img" aria-label="[^"]{10,}"', figure)
            assert re.search(r"<figcaption>[^<]{20,}", figure)


def test_a_page_fetches_nothing(runs: Path) -> None:
    html = write_report(runs / "exact").read_text()
    assert "default-src 'none'" in html
    assert not re.findall(r'(?:src|href)="(?!data:)', html)
    assert not re.findall(r"https?://", html.replace("http://www.w3.org/2000/svg", ""))
    assert not re.findall(r"@import|url\(", html)


def test_left_out_updates_are_told(runs: Path) -> None:
    html = text_of(write_report(runs / "faults").read_text())
    assert "Updates that were left out" in html
    assert "rejected: not finite" in html
    assert "Updates that were left out" not in text_of(write_report(runs / "exact").read_text())


def test_the_gap_is_drawn_only_where_it_can_be_seen(runs: Path) -> None:
    exact, bcd = (write_report(runs / name).read_text() for name in ("exact", "bcd"))
    assert 'id="gap"' not in exact
    assert "within 0.0001 % of a proven lower bound" in text_of(exact)
    assert 'id="gap"' in bcd


def test_what_the_user_wrote_is_escaped(runs: Path) -> None:
    record = read_record(runs / "faults")
    nasty = '</script><img src=x onerror="alert(1)">'
    clients = tuple(replace(c, name=nasty, status=nasty) for c in record.rounds[-1].clients)
    rounds = (replace(record.rounds[0], clients=clients),)
    html = render_run(
        replace(record, rounds=rounds, scenario={**record.scenario, "description": nasty})
    )
    assert "<img" not in html


@pytest.mark.parametrize("kept", [0, 2])
def test_an_unfinished_run_has_a_page(tmp_path: Path, kept: int) -> None:
    values = fake_record.scenario_values(3, 4)
    with RunDirectory.create(tmp_path / "run", scenario_values=values, method="exact") as run:
        for record in fake_record.rounds(values)[:kept]:
            run.append_round(record)
        html = text_of(write_report(tmp_path / "run").read_text())
    assert "not finished" in html
    assert ("No round has ended yet" if kept == 0 else "2 of 4 rounds in") in html


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    values = fake_record.scenario_values(3, 4)

    def fail() -> None:
        with RunDirectory.create(tmp_path / "r", scenario_values=values, method="exact") as run:
            run.append_round(fake_record.rounds(values)[0])
            raise RunError("the third device <caught> fire")

    with pytest.raises(RunError):
        fail()
    assert "The run failed: the third device &lt;caught&gt; fire" in text_of(
        write_report(tmp_path / "r").read_text()
    )


def bare(record: Record) -> Record:
    """The record with everything left out that may be missing."""
    optional = dict.fromkeys(
        ("predicted_latency_s", "none_latency_s", "eval_loss", "train_loss", "objective_s",
         "lower_bound_s", "gap"),
    )  # fmt: skip
    rounds = tuple(
        replace(
            r,
            **optional,  # type: ignore[arg-type]
            metrics={},
            clients=tuple(replace(c, snr_db=None, train_loss=None) for c in r.clients),
        )
        for r in record.rounds
    )
    return replace(record, rounds=rounds, description=None)


def test_a_record_without_its_optional_parts_has_a_page(runs: Path) -> None:
    html = text_of(render_run(bare(read_record(runs / "exact"))))
    assert "no certificate" in html
    assert "None" not in html
    assert "nan" not in html.lower().split()


def test_a_long_run_thins_its_heat_maps(runs: Path) -> None:
    record = read_record(runs / "exact")
    first = record.rounds[0]
    rounds = tuple(replace(first, round=i, elapsed_s=20.0 * i) for i in range(1, 601))
    html = render_run(replace(record, rounds=rounds))
    assert html.count('class="heat"') == 2 * 120 * 8
    assert "Every 5th round is shown." in html


def test_the_scenario_on_the_page_can_be_run_again(runs: Path) -> None:
    record = read_record(runs / "exact")
    again = scenario_from_dict(tomllib.loads(toml_text(record.scenario)))
    assert again.model_dump(mode="json") == record.scenario


def test_the_comparison_tells_where_channels_differ(tmp_path: Path, runs: Path) -> None:
    fake_record.write_run(tmp_path / "other", seed=5)
    same = write_comparison({"a": runs / "exact", "b": runs / "none"}, tmp_path / "same.html")
    other = write_comparison({"a": runs / "exact", "b": tmp_path / "other"}, tmp_path / "o.html")
    assert "the same channels in the same round" in same.read_text()
    assert "cannot be matched" in other.read_text()


def test_twelve_runs_are_told_apart_and_their_legend_is_true(runs: Path) -> None:
    record = read_record(runs / "exact")
    html = render_comparison({f"run {i}": record for i in range(12)})
    figure = re.search(r'<figure id="losses-over-time".*?</figure>', html, flags=re.S)
    assert figure is not None
    legend, drawing = figure[0].split("</ul>")
    styles = re.findall(r'class="(line [^"]+)"', drawing)
    assert len(set(styles)) == 12
    assert re.findall(r'class="(line [^"]+)"', legend) == styles


def test_few_lines_bear_their_names(runs: Path) -> None:
    record = read_record(runs / "exact")
    names = ["a", "<b>", "none"]
    html = render_comparison(dict.fromkeys(names, record))
    assert "<b>" not in html.replace("<b>airtune</b>", "")
    shown = re.findall(r'class="end-name".*?</tspan> (.*?)</text>', html)
    assert shown == ["a", "&lt;b&gt;", "none"] * 3


def test_runs_without_losses_or_rounds_can_be_compared(runs: Path) -> None:
    record = read_record(runs / "exact")
    empty = replace(record, rounds=(), description=None)
    blind = bare(record)

    def figures_of(**records: Record) -> list[str]:
        html = render_comparison(records)
        assert "nan" not in text_of(html).lower().split()
        assert "None" not in text_of(html)
        return re.findall(r'<figure id="([^"]+)"', html)

    all_four = ["losses-over-time", "losses-over-rounds", "round-lengths", "time-splits"]
    assert figures_of(a=record, b=empty, c=blind) == all_four
    assert figures_of(a=blind, b=empty) == all_four[2:]
    assert figures_of(a=empty, b=empty) == []


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 300)), min_size=1, max_size=12),
)
def test_names_stand_apart_and_inside(ends: list[tuple[float, float]]) -> None:
    places = svg.spread(ends, 300)
    for (x, y), place in zip(ends, places, strict=True):
        assert place <= 300
        if all(abs(x - other) > 100 / 3 for other, _ in ends if (other, _) != (x, y)) and len(
            ends
        ) == len(set(ends)):
            assert place == y
    for i, (x, _) in enumerate(ends):
        for j in range(i):
            if abs(x - ends[j][0]) < 33:
                assert abs(places[i] - places[j]) > 13.99


def test_refusals_are_one_line(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match="give two or more"):
        write_comparison({"a": runs / "exact"}, tmp_path / "c.html")
    with pytest.raises(RunError, match="cannot write"):
        write_comparison(
            {"a": runs / "exact", "b": runs / "none"}, tmp_path / "not" / "there" / "c.html"
        )


def test_reporting_does_not_load_torch() -> None:
    code = "import sys, airtune.report; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
