"""The tutorials run from a fresh kernel; their own assertions check what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import script

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
@pytest.mark.parametrize(
    "notebook", sorted((DOCS / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_tutorial_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = script(DOCS / "run_tutorials.py")
    done = run.executed(notebook)
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    # Committed with what they print, so that the site shows it.
    committed = run.nbformat.read(notebook, as_version=4)
    printing = [bool(cell.outputs) for cell in code]
    assert printing == [bool(c.outputs) for c in committed.cells if c.cell_type == "code"]
