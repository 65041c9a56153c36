"""The pages in a real browser, without a network: everything is drawn and nothing complains."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_record
from airtune.record import read_record
from airtune.report import write_comparison, write_report
from airtune.report.summary import last_client

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--host-resolver-rules=MAP * ~NOTFOUND"
)

# For each figure: what of it takes no room, or draws nothing, or falls out of its figure.
UNDRAWN = """
const faults = [];
for (const figure of document.querySelectorAll("figure")) {
  const frame = figure.getBoundingClientRect();
  const drawings = figure.querySelectorAll("svg[role=img]");
  if (!drawings.length) faults.push(`${figure.id}: no drawing`);
  for (const svg of drawings) {
    const box = svg.getBoundingClientRect();
    if (box.width < 50 || box.height < 15) faults.push(`${figure.id}: ${box.width}x${box.height}`);
    if (box.left < frame.left || box.right > frame.right) faults.push(`${figure.id}: too wide`);
    const marks = [...svg.querySelectorAll("path, rect, circle")];
    const drawn = marks.filter((mark) => {
      const own = mark.getBoundingClientRect();
      return own.width > 0 || own.height > 0;
    });
    if (!drawn.length) faults.push(`${figure.id}: nothing drawn`);
    for (const path of svg.querySelectorAll("path"))
      if (!(path.getTotalLength() > 0)) faults.push(`${figure.id}: empty path`);
    for (const text of svg.querySelectorAll("text")) {
      if (getComputedStyle(text).display === "none") continue;
      const own = text.getBoundingClientRect();
      if (own.left < frame.left - 1 || own.right > frame.right + 1)
        faults.push(`${figure.id}: "${text.textContent}" is cut off`);
    }
  }
}
return faults;
"""


def _browser(profile: Path) -> Any:
    """Debian's Chromium with its own driver; nothing is looked for on the network."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs Chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(" --"), f"user-data-dir={profile}"]:
        options.add_argument("--" + flag.removeprefix("--"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = _browser(tmp_path_factory.mktemp("profile"))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    fake_record.write_run(folder / "usual", method="bcd", faults=True)
    fake_record.write_run(folder / "large", clients=32, rounds_=40)
    fake_record.write_run(folder / "least", clients=1, rounds_=1)
    fake_record.write_run(folder / "none", method="none")
    for name in ("usual", "large", "least"):
        write_report(folder / name)
    write_comparison({"bcd": folder / "usual", "none": folder / "none"}, folder / "both.html")
    seven = {f"method-{i}": folder / ("none" if i == 3 else "usual") for i in range(7)}
    write_comparison(seven, folder / "seven.html")
    twelve = {f"a-rather-long-name-{i}": folder / ("least" if i else "none") for i in range(12)}
    write_comparison(twelve, folder / "twelve.html")
    return folder


def open_page(browser: Any, page: Path, *, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize(
    "page",
    [
        "usual/report.html",
        "large/report.html",
        "least/report.html",
        "both.html",
        "seven.html",
        "twelve.html",
    ],
)
def test_every_figure_is_drawn_and_nothing_is_logged(
    browser: Any, runs: Path, page: str, width: int
) -> None:
    open_page(browser, runs / page, width=width)
    assert len(browser.find_elements("css selector", "figure")) >= 3
    assert browser.execute_script(UNDRAWN) == []
    page_width = browser.execute_script("return document.documentElement.scrollWidth")
    assert page_width <= width
    assert browser.get_log("browser") == []


def test_the_last_round_is_shown_first_and_others_can_be_chosen(browser: Any, runs: Path) -> None:
    open_page(browser, runs / "large" / "report.html", width=1280)
    rounds = read_record(runs / "large").rounds

    def shown() -> tuple[str, str, list[str]]:
        heading = browser.find_element("id", "chosen").text
        last = browser.find_element("css selector", "#timeline .row.last .name").text
        widths = browser.find_elements("css selector", "#timeline .row rect")
        return heading, last, [bar.get_attribute("width") for bar in widths]

    slowest = last_client(rounds[-1].clients)
    assert slowest is not None
    heading, last, bars = shown()
    assert heading.startswith("Round 40 of 40: ")
    assert last == rounds[-1].clients[slowest].name
    browser.find_element("id", "earlier").click()
    heading_before, last_before, bars_before = shown()
    slowest = last_client(rounds[-2].clients)
    assert slowest is not None
    assert heading_before.startswith("Round 39 of 40: ")
    assert last_before == rounds[-2].clients[slowest].name
    assert bars_before != bars
    browser.find_element("id", "later").click()
    assert shown() == (heading, last, bars)
    assert browser.execute_script(UNDRAWN) == []


def test_the_script_draws_a_round_as_the_page_did(browser: Any, runs: Path, tmp_path: Path) -> None:
    """Without its script the page shows the last round: the two drawings are one."""
    html = (runs / "usual" / "report.html").read_text()
    still = tmp_path / "still.html"
    still.write_text(html.replace("script-src 'unsafe-inline'; ", ""))
    script = """
    return [...document.querySelectorAll("#timeline svg[role=img] :is(rect, text)")].map((mark) => {
      const box = mark.getBoundingClientRect();
      return [mark.textContent, box.left, box.width];
    });
    """
    drawn = []
    for page in (still, runs / "usual" / "report.html"):
        open_page(browser, page, width=1280)
        drawn.append(browser.execute_script(script))
        browser.get_log("browser")  # the first page's refused script is meant
    assert [mark[0] for mark in drawn[0]] == [mark[0] for mark in drawn[1]]
    for (_, *before), (_, *after) in zip(*drawn, strict=True):
        assert after == pytest.approx(before, abs=1)  # px: the script's figures are rounded


def test_names_at_the_lines_stand_apart_and_give_way_to_a_legend(browser: Any, runs: Path) -> None:
    script = """
    const figure = document.getElementById("losses-over-time");
    const seen = (mark) => mark.getBoundingClientRect().height > 0;
    const names = [...figure.querySelectorAll(".end-name")].filter(seen);
    return [seen(figure.querySelector(".legend")), names.map((name) => {
      const box = name.getBoundingClientRect();
      return [box.left, box.right, box.top, box.bottom];
    })];
    """
    open_page(browser, runs / "seven.html", width=1280)
    legend, names = browser.execute_script(script)
    assert not legend
    assert len(names) == 7
    for i, (left, right, top, bottom) in enumerate(names):
        for other in names[:i]:
            apart = max(left - other[1], other[0] - right, top - other[3], other[2] - bottom)
            assert apart > -2  # px: a line's box is a little higher than its letters
    open_page(browser, runs / "seven.html", width=390)
    assert browser.execute_script(script) == [True, []]


def test_the_table_of_clients_needs_no_scrolling_on_a_desk(browser: Any, runs: Path) -> None:
    open_page(browser, runs / "usual" / "report.html", width=1280)
    hidden = "const t = document.getElementById('clients').parentElement;"
    assert browser.execute_script(hidden + "return t.scrollWidth - t.clientWidth") <= 0


def test_dark_and_light_differ_and_text_stays_readable(browser: Any, runs: Path) -> None:
    script = """
    const read = (of, key) => getComputedStyle(document.querySelector(of))[key].match(/[0-9.]+/g)
      .slice(0, 3).map(Number);
    return [read("body", "backgroundColor"), read("body", "color"), read("figcaption", "color"),
            read("figure", "backgroundColor")];
    """

    def luminance(rgb: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (value / 255 for value in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: list[float], b: list[float]) -> float:
        light, dark = sorted((luminance(a), luminance(b)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    pages = {}
    for scheme in ("light", "dark"):
        open_page(browser, runs / "usual" / "report.html", width=1280, scheme=scheme)
        page, ink, soft, panel = browser.execute_script(script)
        # 4.5 is what WCAG 2 asks of text at level AA.
        assert contrast(page, ink) > 4.5
        assert contrast(panel, soft) > 4.5
        pages[scheme] = page
    assert luminance(pages["light"]) > luminance(pages["dark"])
