"""One run of a study in a process of its own: it goes on where it stopped, and reports its end."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from airtune.errors import InputError, RunError
from airtune.record.files import write_durably
from airtune.record.reading import RUN


def perform(task: Mapping[str, Any]) -> str | None:
    """Do one run; return None where it finished, else the line that says why not.

    What lies beside the run directory afterwards, `<folder>.json`: `error` (null where the run
    finished), `peak_bytes` (the most memory that this process held) and `wall_s`.

    Args:
        task: `folder`, `values` (the resolved scenario), `threads`, `trackers`
            (names) and `keep_adapter`; plain values, so that any process can be given them.
    """
    _end_with_parent()
    folder, begin = Path(task["folder"]), time.perf_counter()
    error: str | None = None
    try:
        _run(folder, task)
    except (InputError, RunError) as refusal:
        error = str(refusal)
    except Exception as fault:
        # A fault of the program or of a plugin: the study goes on, and the traceback is kept.
        error = f"{type(fault).__name__}: {fault}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_name(f"{folder.name}.traceback.txt").write_text(traceback.format_exc())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = {
        "error": error,
        # Linux counts in kB, macOS in bytes.
        "peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
        "wall_s": time.perf_counter() - begin,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_durably(folder.with_name(f"{folder.name}.json"), (json.dumps(told) + "\n").encode())
    return error


def _run(folder: Path, task: Mapping[str, Any]) -> None:
    import torch

    from airtune.report import write_report
    from airtune.rounds.observer import Observer
    from airtune.rounds.running import run
    from airtune.rounds.trackers import tracked
    from airtune.scenario import scenario_from_dict

    torch.set_num_threads(task["threads"])
    scenario = scenario_from_dict(task["values"])
    begun = (folder / RUN).is_file()
    other = begun and _other_version(folder)
    with tracked(task.get("trackers", []), scenario, folder, Observer()) as watch:
        run(scenario, out=folder, resume=begun and not other, replace=other, observer=watch)
    write_report(folder)
    # What only a resumption needs may be gigabytes.
    for part in ("checkpoint",) if task["keep_adapter"] else ("checkpoint", "adapter"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _other_version(folder: Path) -> bool:
    """Whether a run was begun by another version of airtune, which cannot go on with it."""
    from importlib import metadata

    try:
        versions = json.loads((folder / RUN).read_bytes())["versions"]
        return bool(versions.get("airtune") != metadata.version("airtune"))
    except (ValueError, KeyError, AttributeError, metadata.PackageNotFoundError):
        return False


def _end_with_parent() -> None:
    """End this process when the one that started it dies in whatever way."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        with suppress(OSError):
            connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
