"""Scripts that are no part of the package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def script(path: Path) -> Any:
    """Return a script as a module of its own, named after its folder and itself."""
    name = f"{path.parent.name}_{path.stem}"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[name] = loaded  # its dataclasses look for their module there
    specification.loader.exec_module(loaded)
    return loaded
