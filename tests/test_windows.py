"""Plan, run, compare and report without what only POSIX systems have.

Nothing here runs on Windows: what is missing there is hidden from airtune's own modules.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path, PureWindowsPath

import pytest

from airtune.report.page import toml_text
from airtune.scenario import scenario_from_dict
from fake_record import VALUES

HIDDEN = """
import builtins, os, signal, socket, sys

MODULES = {"fcntl", "grp", "pwd", "pty", "resource", "syslog", "termios", "tty"}
imported, opened = builtins.__import__, os.open

def caller():
    return sys._getframe(2).f_globals.get("__name__", "")

def of_windows(name, *rest, **more):
    # filelock has another lock where fcntl is missing; other packages ask what system this is.
    if name in MODULES and caller().partition(".")[0] in ("airtune", "filelock"):
        raise ImportError(f"No module named {name!r}")
    return imported(name, *rest, **more)

def no_folder(path, *rest, **more):
    if caller().startswith("airtune") and os.path.isdir(path):
        raise PermissionError(13, "Windows opens no folder", str(path))
    return opened(path, *rest, **more)

builtins.__import__, os.open = of_windows, no_folder
import airtune.record.files
airtune.record.files._FOLDERS_ARE_FLUSHED = False  # os.name == "posix", evaluated at its import
if HEAVY:
    import datasets, peft, torch, transformers
    torch.set_num_threads(1)
for name in ("fork", "geteuid", "getgid", "getloadavg", "getpgid", "getuid", "killpg",
             "sched_getaffinity", "setsid", "sysconf", "O_DIRECTORY", "O_NOFOLLOW"):
    delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1"):
    delattr(signal, name)
del socket.AF_UNIX
exec(FAULT, {"__name__": "airtune.fault", "os": os})
from airtune.cli import main

for words in COMMANDS:
    sys.argv = ["airtune", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"{words} ended with {end.code}")
"""


def as_on_windows(*commands: list[str], heavy: bool = False, fault: str = "") -> None:
    code = HIDDEN.replace("COMMANDS", repr(list(commands)))
    code = code.replace("HEAVY", str(heavy)).replace("FAULT", repr(fault))
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600
    )
    assert made.returncode == 0, made.stderr


def test_planning_needs_nothing_that_windows_lacks() -> None:
    as_on_windows(["plan", "tiny", "--json"], ["plan", "tiny", "--sweep", "kappa=0:1:2"])


def test_running_comparing_and_reporting_need_nothing_that_windows_lacks(tmp_path: Path) -> None:
    run, both = str(tmp_path / "run"), str(tmp_path / "both")
    short = ["--set", "task.eval_examples=8", "--set", "training.local_steps=1"]
    as_on_windows(
        ["run", "tiny", "-o", run, "--set", "rounds=1", *short],
        ["run", "tiny", "-o", run, "--set", "rounds=2", *short, "--resume"],
        ["run", "tiny", "-o", run, "--set", "rounds=1", *short, "--replace"],
        ["report", run],
        ["compare", "tiny", "-o", both, "--methods", "exact,none", "--set", "rounds=1", *short],
        heavy=True,
    )
    assert (tmp_path / "run" / "report.html").is_file()
    assert {path.name for path in (tmp_path / "both").iterdir()} >= {"exact", "none"}


@pytest.mark.parametrize("fault", ["import fcntl", "os.open('.', os.O_RDONLY)", "os.getuid()"])
def test_what_windows_lacks_is_seen(fault: str) -> None:
    with pytest.raises(AssertionError, match=r"fcntl|getuid|opens no folder"):
        as_on_windows(fault=fault)


def test_paths_of_windows_survive_the_record_and_its_page() -> None:
    path = str(PureWindowsPath("C:/Users/new/trace.txt"))
    devices = [{**VALUES["devices"][0], "uplink_trace": path}]
    values = scenario_from_dict({**VALUES, "devices": devices}).model_dump(mode="json")
    assert values["devices"][0]["uplink_trace"] == "C:\\Users\\new\\trace.txt"
    assert scenario_from_dict(tomllib.loads(toml_text(values))).model_dump(mode="json") == values
