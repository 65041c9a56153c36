"""One run of a study in a process of its own: how its end is written down.

What the run does is given by the caller: a real run is `airtune.rounds.apart`'s.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

from airtune.errors import InputError, RunError
from airtune.record.files import write_durably
from airtune.study.keys import sidecar_path

Task = Mapping[str, Any]


def performed(run: Callable[[Path, Task], None], task: Task) -> str | None:
    """Do one run; return None where it finished, else the line that says why not.

    What lies beside the run directory afterwards, `<folder>.json`: `error` (null where the run
    finished), `peak_bytes` (the most memory that this process held), `wall_s`, and the task's
    `files`. The process ends with the one that started it.

    Args:
        run: does the run, given its folder and the task.
        task: `folder`, `values` (the resolved scenario), `files` (hashes of what it names),
            `threads`, `trackers` (names) and `keep_adapter`; plain values, so that any process
            can be given them.
    """
    _end_with_parent()
    folder, begin = Path(task["folder"]), time.perf_counter()
    error: str | None = None
    try:
        run(folder, task)
    except (InputError, RunError) as refusal:
        error = str(refusal)
    except Exception as fault:
        # A fault of the program or of a plugin: the study goes on, and the traceback is kept.
        error = f"{type(fault).__name__}: {fault}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_name(f"{folder.name}.traceback.txt").write_text(traceback.format_exc())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ended = {
        "files": task.get("files", []),
        "error": error,
        # Linux counts in kB, macOS in bytes.
        "peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
        "wall_s": time.perf_counter() - begin,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_durably(sidecar_path(folder), (json.dumps(ended) + "\n").encode())
    return error


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
