"""The documents say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_command_reference_is_the_commands_own_help(tmp_path: Path) -> None:
    made = tmp_path / "cli.md"
    command = [sys.executable, "-W", "ignore", "-m", "typer", "airtune.cli", "utils", "docs"]
    subprocess.run(
        [*command, "--name", "airtune", "--output", str(made)], check=True, capture_output=True
    )
    # Out of date? `make docs` writes it.
    assert made.read_text() == (ROOT / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    local = [target for target in targets if not target.startswith(("http:", "https:", "mailto:"))]
    missing = [target for target in local if not (document.parent / target).exists()]
    assert not missing


def test_the_readme_shows_the_plan_commands_true_output() -> None:
    command = [sys.executable, "-c", "from airtune.cli import main; main()"]
    shown = subprocess.run(
        [*command, "plan", "examples/cell.json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    readme = (ROOT / "README.md").read_text()
    block = readme.split("$ airtune plan examples/cell.json\n", 1)[1].split("```", 1)[0]

    def lines(text: str) -> list[str]:
        without_time = re.sub(r"\s*\([\d.]+ m?s\)", "", text)
        return [line.strip() for line in without_time.splitlines() if line.strip()]

    assert lines(block) == lines(shown.stdout)
