"""The site's reference pages are complete: scenario keys, public names, navigation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import airtune as at
from airtune.scenario import Scenario
from scripts import script

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def test_the_page_of_scenario_keys_is_the_generated_one() -> None:
    # Out of date? `make docs` writes it.
    assert (DOCS / "scenario.md").read_text() == script(DOCS / "scenario_keys.py").page()


def test_every_key_is_on_the_page_with_default_range_and_meaning() -> None:
    """The keys are taken from the JSON schema, not from the script."""
    schema = Scenario.model_json_schema()
    keys = set()
    for name, value in schema["properties"].items():
        refs = re.findall(r"#/\$defs/(\w+)", str(value))
        inner = [f"{name}.{key}" for ref in refs for key in schema["$defs"][ref]["properties"]]
        keys |= set(inner or [name])
    rows = re.findall(r"^\| `(.+?)` \| (.*?) \| (.+?) \| (.+?) \| (.+?) \|$", _page(), re.M)
    assert {row[0] for row in rows} == keys
    assert len(rows) == len(keys) > 80
    with_unit = re.compile(r"_(hz|db|dbm|m|bytes|s|j|w)$")
    assert not [key for key, unit, *_ in rows if with_unit.search(key) and not unit.strip()]


def _page() -> str:
    return (DOCS / "scenario.md").read_text()


RANGES = re.findall(
    r"^\| `(\w+\.\w+)` .*? (whole )?number in ([\[(])(.+?), (.+?)([\])])", _page(), re.M
)


@pytest.mark.parametrize(
    ("key", "whole", "opens", "low", "high", "closes"), RANGES, ids=[row[0] for row in RANGES]
)
def test_a_value_outside_of_the_range_on_the_page_is_refused(
    key: str, whole: str, opens: str, low: str, high: str, closes: str
) -> None:
    for bound, closed, sign in ((low, opens == "[", -1), (high, closes == "]", 1)):
        if "∞" in bound:
            continue
        step = 1.0 if whole else 1e-6 * max(abs(float(bound)), 1.0)
        value = float(bound) + sign * step * closed
        written = str(int(value)) if whole else f"{value:.12g}"
        path = key.replace("devices.", "devices.0.")
        with pytest.raises(at.InputError, match=re.escape(path)):
            at.load_scenario("tiny", [f"{path}={written}"])


def test_every_public_name_is_on_the_python_page() -> None:
    names = re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "python.md").read_text(), re.M)
    assert sorted(names) == sorted(set(at.__all__) - {"__version__"})


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": ([\w/-]+\.(?:md|ipynb))$", text, re.M))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    pages |= {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.ipynb")}
    assert listed == pages
    assert yaml.safe_load(text)["site_name"] == "airtune"
