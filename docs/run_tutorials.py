"""Run the tutorials and keep what they print: python docs/run_tutorials.py."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).with_name("tutorials")


def executed(path: Path) -> nbformat.NotebookNode:
    """Return a notebook after all of its cells have run, in order, in a fresh kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, record_timing=False).execute()
    for cell in notebook.cells:
        # Warnings and log lines of libraries are no part of a tutorial.
        outputs = [one for one in cell.get("outputs", ()) if one.get("name") != "stderr"]
        if cell.cell_type == "code":
            cell.outputs = outputs
    return notebook


if __name__ == "__main__":
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        nbformat.write(executed(path), path)
