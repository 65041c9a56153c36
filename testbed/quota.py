"""A share of this machine's cores for each device, so that one cannot borrow another's."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from links import runs_since

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 20_000
"""Short, so that a device that has used up its share does not stand still for long."""


class Quotas:
    """Control groups with a bound on CPU time, one a device; removed at the end.

    Linux's cgroups, of version 2 or with version 1's cpu controller. Where neither can be
    written, commands run unbounded and `missing` says why.
    """

    def __init__(self, names: Sequence[str], cores: float) -> None:
        self.cores = cores
        self.missing = ""
        self._groups: dict[str, Path] = {}
        self._names = names

    def __enter__(self) -> Quotas:
        legacy = ROOT / "cpu" / "cpu.cfs_quota_us"
        parent = legacy.parent if legacy.exists() else ROOT
        try:
            if not legacy.exists():
                (ROOT / "cgroup.subtree_control").write_text("+cpu")
            for name in self._names:
                group = parent / f"airtune-{os.getpid()}-{name}"
                group.mkdir()
                self._groups[name] = group
                quota_us = max(1000, round(self.cores * PERIOD_US))
                if legacy.exists():
                    (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                    (group / "cpu.cfs_quota_us").write_text(str(quota_us))
                else:
                    (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        except OSError as error:
            self._remove()
            self.missing = f"{error.filename or parent}: {error.strerror or error}"
        return self

    def within(self, name: str, command: Sequence[str]) -> list[str]:
        """Return the command so that it and its children stay within the device's share."""
        if name not in self._groups:
            return list(command)
        joining = f'echo $$ > "{self._groups[name]}/cgroup.procs" && exec "$@"'
        return ["sh", "-c", joining, "sh", *command]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        for group in self._groups.values():
            for _ in range(50):  # a group goes only after its last process
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.1)
        self._groups = {}


def sweep_quotas() -> list[str]:
    """Remove the control groups of testbeds whose process is gone."""
    removed = []
    for parent in (ROOT, ROOT / "cpu"):
        for group in parent.glob("airtune-*-*"):
            found = re.match(r"airtune-(\d+)-", group.name)
            if found is not None and not runs_since(int(found[1]), group):
                with suppress(OSError):
                    group.rmdir()
                    removed.append(f"control group {group.name}")
    return removed
