"""Pages of a run and of a comparison: every figure, every name, nothing fetched."""

from __future__ import annotations

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
    numbers,
    svg,
    write_comparison,
    write_report,
)
from airtune.report.comparison import render_comparison
from airtune.report.page import render_run, toml_text
from airtune.report.summary import headline, time_split
from airtune.scenario import scenario_from_dict
from fake_record import text_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_record.write_runs(tmp_path_factory.mktemp("runs"))


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
