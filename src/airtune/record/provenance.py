"""What a run was made by: the versions of airtune and its libraries, and the machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

_LIBRARIES = ("airtune", "torch", "transformers", "peft", "numpy")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and the libraries; None where one is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        # From the installed metadata: importing torch to ask it takes seconds.
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Return what the machine is that simulates the run."""
    return {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
