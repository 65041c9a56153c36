"""What a study writes down: tables that agree, figures for print, a page that needs no network."""

from __future__ import annotations

import csv
import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from rich.console import Console

from airtune.study import load_study
from airtune.study.comparison import compare
from airtune.study.console import claims, estimate_text, ranking_table
from airtune.study.curves import (
    MOST_LINES,
    PALETTE,
    loss_rows,
    panels,
    spans_orders,
    times_far_apart,
)
from airtune.study.page import PAGE, write_page
from airtune.study.prints import write_figures
from airtune.study.results import Result
from airtune.study.schema import Study
from airtune.study.statistics import difference, ratio
from airtune.study.tables import escaped, latex, write_tables
from test_study import made

POINT = (("cell.radius_m", "100"),)


def several(methods: int = 4, energy: bool = False) -> tuple[Study, list[Result]]:
    """Results of a study of the shipped methods, on three seeds and at one point of an axis."""
    study = load_study("tiny", [])
    names = [*study.methods, *(f"more_{i}" for i in range(methods - 4))]
    every = {name: study.methods.get(name, study.methods["fedit"]) for name in names}
    results = []
    for point in ((), POINT):
        for number, (name, method) in enumerate(every.items()):
            for seed in range(3):
                losses = [3.0, 2.0, 1.0 + 0.1 * number + 0.01 * seed * (number + 1)]
                one = made(name, method.kind, losses, 10.0 - number / 10, seed)
                own = {n: getattr(one, n) for n in one.__dataclass_fields__}
                phases = {"downlink_s": 1.0, "compute_s": 3.0, "upload_s": 2.0, "waiting_s": 1.5}
                own |= {"point": point, "budget_s": phases, "metrics": {"accuracy": 0.5}}
                own |= {"energy_j": (0.0, 1.0, 2.0 + number)} if energy else {}
                results.append(Result(**own))
    return study.model_copy(update={"methods": every}), results


def test_tables_are_the_same_in_every_form(tmp_path: Path) -> None:
    _, results = several(energy=True)
    comparisons = compare(results)
    write_tables(results, comparisons, tmp_path)
    for name in ("runs", "ranking"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            text = list(csv.DictReader(file))
        rows = pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()
        assert len(text) == len(rows) == (24 if name == "runs" else 8)
        for told, row in zip(text, rows, strict=True):
            assert told == {key: "" if v is None else str(v) for key, v in row.items()}
    runs = pyarrow.parquet.read_table(tmp_path / "runs.parquet").to_pylist()
    first = {row["method"]: row for row in runs if row["seed"] == 0 and not row["point"]}
    # `exact` ends at 1.0, the best baseline, fedit, at 1.1: the target.
    assert first["fedit"]["target_loss"] == first["fedit"]["final_loss"] == 1.1
    assert first["exact"]["time_to_target_s"] == 20.0
    assert (first["flexlora"]["censored"], first["flexlora"]["time_to_target_s"]) == (True, None)
    ranking = pyarrow.parquet.read_table(tmp_path / "ranking.parquet").to_pylist()
    exact = next(row for row in ranking if row["method"] == "exact")
    assert exact["reference"] == "fedit"
    assert exact["loss_difference_verdict"] == "better"
    assert exact["energy_ratio"] == pytest.approx(2 / 3)
    assert exact["loss_difference_low"] < exact["loss_difference"] < exact["loss_difference_high"]


def test_energy_to_the_target_is_shown_wherever_it_is_known(tmp_path: Path) -> None:
    study, results = several(energy=True)
    comparisons = compare(results)
    html = write_page(study, results, comparisons, tmp_path).read_text()
    assert "<th>energy ratio</th>" in html
    rows = {row[0]: row for row in re.findall(r"<tr><td>(\w+)</td><td>0</td>(.*?)</tr>", html)}
    # `exact` reaches the target with its last round, `flexlora` not at all.
    assert "<td>20.0</td><td>2.0</td>" in rows["exact"][1]
    assert "<td>&gt; 19.4</td><td>&gt; 5.0</td>" in rows["flexlora"][1]
    table = ranking_table(comparisons[0])
    energy = next(column for column in table.columns if column.label == "energy ratio")
    cells = dict(zip(table.columns[0].cells, energy.cells, strict=True))
    assert cells["exact"] == "0.667 [0.667, 0.667]"
    assert any("energy to the target lower, 0.667" in text for text in claims(comparisons[0]))
    _, without = several()
    assert all(
        column.label != "energy ratio" for column in ranking_table(compare(without)[0]).columns
    )
    assert "energy ratio" not in write_page(study, without, compare(without), tmp_path).read_text()


def test_latex_is_booktabs_and_escapes_what_tex_reads(tmp_path: Path) -> None:
    _, results = several(6)
    text = latex(compare(results))
    assert text.count("\\toprule") == text.count("\\bottomrule") == 2
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len({line.count("&") for line in rows}) == 1
    assert "more\\_1" in text
    assert escaped("50% & a_b") == "50\\% \\& a\\_b"


def test_an_estimate_says_when_it_is_no_mean() -> None:
    assert estimate_text(ratio([(0.5, 1.0), (0.5, 1.0)])) == "0.500 [0.500, 0.500]"
    assert estimate_text(difference([(0.5, 1.0)])) == "-0.500"
    assert estimate_text(ratio([])) == "–"
    # 0.1, 0.2, 1.4 and two that were followed to 0.4 and 9: the median is between 0.4 and 1.4.
    known = [(0.1, 1.0), (0.2, 1.0), (1.4, 1.0)]
    assert estimate_text(ratio(known, [0.4, 9.0])) == "median at most 1.400"
    assert estimate_text(ratio(known[:1], [0.4])) == "not reached"
    assert estimate_text(ratio([], [2.0] * 8)) == "not reached [2.000, …]"
    sooner = ratio([(0.5 + i / 100, 1.0) for i in range(8)], [0.9])
    assert estimate_text(sooner) == "median at most 0.540 [0.510, 0.570]"


def test_a_panel_has_at_most_eight_lines_and_the_reference_in_each() -> None:
    names = [f"m{i}" for i in range(29)]
    groups = panels(names, "m3")
    assert all(len(group) <= MOST_LINES and group[0] == "m3" for group in groups)
    assert {name for group in groups for name in group} == set(names)
    assert panels(["a", "b"], None) == [["a", "b"]]
    assert len(set(PALETTE)) == MOST_LINES


def test_figures_are_vector_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    study, results = several(12)
    paths = write_figures(study, results, compare(results), tmp_path / "a")
    assert {path.name for path in paths} == {
        f"{name}.{end}"
        for name in ("loss", "ranking", "budget", "resources", "axes")
        for end in ("svg", "pdf")
    }
    again = write_figures(study, results, compare(results), tmp_path / "b")
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    colours = set(re.findall(r"#[0-9a-f]{6}", (tmp_path / "a" / "loss.svg").read_text()))
    assert {colour.lower() for colour in PALETTE} <= colours
    assert write_figures(study, [], [], tmp_path / "c") == []


@pytest.mark.parametrize(("factor", "wide"), [(1.0, False), (1e-3, True), (0.0, False)])
def test_losses_far_apart_have_a_logarithmic_axis(
    tmp_path: Path, factor: float, wide: bool
) -> None:
    study, results = several(2)
    scaled = tuple(value and value * factor for value in results[0].loss)
    changed = [replace(results[0], loss=scaled), *results[1:]]
    rows, _ = loss_rows([one for one in changed if not one.point], None)
    assert spans_orders(rows) is wide
    write_figures(study, changed, compare(changed), tmp_path)
    assert ("<!-- 0.05 -->" in (tmp_path / "loss.svg").read_text()) is wide
    write_page(study, changed, compare(changed), tmp_path)
    assert ('"type": "log"' in (tmp_path / PAGE).read_text()) is wide


def test_no_figure_of_the_ranking_is_cut_in_80_columns() -> None:
    table = ranking_table(compare(several(5, energy=True)[1])[0])
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert "…" not in text
    assert "not shown in 80 columns: uplink ratio, energy ratio" in text
    for column in table.columns[:4]:
        assert all(cell in text for cell in column.cells)


def test_a_curve_goes_on_to_the_end_of_the_longest_run() -> None:
    # Seeds of 20 s and 60 s, which is three times FedIT's: the first keeps its last loss, 1.0.
    runs = [made("fedit", "baseline", [3.0, 2.0, 1.5], 10.0, seed) for seed in (0, 1)]
    runs += [made("exact", "joint", [3.0, 2.0, 1.0], 10.0, 0)]
    runs += [made("exact", "joint", [3.0, 2.0, 1.4, 1.2], 20.0, 1)]
    rows, unit = loss_rows(runs, "fedit")
    own = [row for row in rows if row["method"] == "exact"]
    assert unit == "share of fedit's"
    assert [row["time"] for row in own if row["part"] == 0][-1] == pytest.approx(1.0)
    later = [row for row in own if row["part"] == 1]
    assert (later[0]["time"], later[-1]["time"]) == pytest.approx((1.0, 3.0))
    assert later[-1]["loss"] == pytest.approx(np.mean([1.0, 1.2]))
    assert (later[-1]["low"], later[-1]["high"]) == pytest.approx((1.0, 1.2))
    assert {row["running"] for row in later[1:]} == {1}
    assert {row["part"] for row in rows if row["method"] == "fedit"} == {0}
    assert not times_far_apart(rows)


def test_times_that_are_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    study, results = several(2)
    results = [one for one in results if not one.point]
    slow = [replace(one, elapsed_s=tuple(11 * t for t in one.elapsed_s)) for one in results[3:]]
    rows, _ = loss_rows([*results[:3], *slow], results[0].method)
    assert times_far_apart(rows)
    assert min(row["time"] for row in rows) == pytest.approx(0.5)  # the first of two rounds
    changed = [*results[:3], *slow]
    write_page(study, changed, compare(changed), tmp_path)
    assert '"title": "virtual time, share of' in (tmp_path / PAGE).read_text()
    assert '"type": "log"' in (tmp_path / PAGE).read_text()
    write_figures(study, changed, compare(changed), tmp_path)


@pytest.mark.parametrize("altair", [True, False])
def test_the_page_holds_everything_and_fetches_nothing(
    tmp_path: Path, altair: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if altair:
        pytest.importorskip("altair")
        pytest.importorskip("vl_convert")
    else:
        monkeypatch.setattr("airtune.study.charts._altair", lambda: None)
        monkeypatch.setattr("airtune.study.page._bundle", lambda: None)
    study, results = several(10)
    (tmp_path / "runs" / results[0].key).mkdir(parents=True)
    (tmp_path / "runs" / results[0].key / PAGE).write_text("x")
    write_figures(study, results, compare(results), tmp_path / "figures")
    html = write_page(study, results, compare(results), tmp_path).read_text()
    assert len(html) < 5e6
    assert "default-src 'none'" in html
    assert f'href="runs/{results[0].key}/report.html"' in html
    assert f'href="runs/{results[1].key}/report.html"' not in html
    for name in study.methods:
        assert name in html
    assert ("vegaEmbed" in html) is altair
    assert html.count('<div class="chart"') == (11 if altair else 0)
    assert html.count("<figure>") == (0 if altair else 5)


def test_a_page_without_a_finished_run_says_so(tmp_path: Path) -> None:
    study = load_study("tiny")
    results = [made("exact", "joint", [], status="failed")]
    html = write_page(study, results, compare(results), tmp_path).read_text()
    assert "1 runs: 1 failed." in html
    assert "it went wrong" in html


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_drawn_in_a_browser_without_a_network(tmp_path: Path, width: int) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from test_report_browser import _browser, open_page

    study, results = several(10)
    page = write_page(study, results, compare(results), tmp_path)
    browser = _browser(tmp_path / "profile")
    try:
        open_page(browser, page, width=width)
        drawn = """
        const done = arguments[arguments.length - 1], begin = Date.now();
        const look = () => {
          const charts = [...document.querySelectorAll(".chart")];
          const ready = charts.every((chart) => chart.querySelector("svg"));
          if (!ready && Date.now() - begin < 60000) return setTimeout(look, 100);
          done(charts.map((chart) => {
            const svg = chart.querySelector("svg"), box = svg && svg.getBoundingClientRect();
            const marks = svg ? svg.querySelectorAll(".mark-line path, .mark-rect path, "
              + ".mark-symbol path, .mark-rule line").length : 0;
            return [chart.id, marks, box ? box.right : null];
          }));
        };
        look();
        """
        browser.set_script_timeout(90)
        charts = browser.execute_async_script(drawn)
        assert len(charts) == 11
        for name, marks, right in charts:
            assert marks > 0, name
            assert right <= width, name
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.get_log("browser") == []
    finally:
        browser.quit()
        shutil.rmtree(tmp_path / "profile", ignore_errors=True)
