"""One command: a real run over shaped links on this machine, predicted against measured.

    sudo .venv/bin/python testbed/run.py [SCENARIO] [--set KEY=VALUE]… [--out DIR]
        [--trace FILE [--trace-from S]]

Linux only, needs root. Each device and the server run in a network namespace of their own, with
real Flower processes, TLS and registered keys; `tc` holds every link to the rate that the plan
gave it. Each device takes the time of its profile in the scenario (`--emulate`), so that what is
tried is the round and not how these cores are shared; a device whose work took longer does not
count. With `--real` devices take their own time, each within its share of the cores. Everything is
removed at the end, also after Ctrl-C; what a killed testbed left is removed at the next start.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent))

from compare import comparison, table
from links import Links, sweep_links
from quota import Quotas, sweep_quotas
from replay import Replay, shown
from shaper import Shaper

from airtune.channel.trace import read_trace
from airtune.errors import InputError, RunError
from airtune.scenario import Scenario, load_scenario

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-c", "from airtune.cli import main; main()"]
PORT = 9443
SHARED_CORES = 0.85
"""Share of this machine's cores that the devices have between them; the rest is the server's."""


def main() -> int:
    """Parse the command line and run; returns the exit status."""
    arguments = _parsed()
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        scenario = load_scenario(arguments.scenario, arguments.set)
        out = Path(arguments.out).resolve()
        written = Path(arguments.scenario)
        source = str(written.resolve()) if written.is_file() else arguments.scenario
        found = run(
            scenario, source, arguments.set, out, arguments.trace, arguments.trace_from,
            arguments.cores, arguments.real,
        )  # fmt: skip
    except (InputError, RunError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("testbed: interrupted; namespaces and processes are removed", file=sys.stderr)
        return 130
    print(table(found))
    (out / "comparison.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


def run(
    scenario: Scenario,
    source: str,
    overrides: Sequence[str],
    out: Path,
    trace: str | None = None,
    trace_from_s: float = 0.0,
    cores: float | None = None,
    real: bool = False,
) -> dict[str, object]:
    """Run a scenario over the testbed; return predicted against measured times.

    With `real` devices are measured and share the cores evenly; otherwise they are emulated.

    Raises:
        InputError: the machine lacks what a testbed needs.
        RunError: the run failed; its logs are kept in `out`.
    """
    replay = None if trace is None else Replay(read_trace(trace, "uplink"), trace_from_s)
    names = scenario.client_names
    started: list[subprocess.Popen[bytes]] = []
    for left in (*sweep_links(), *sweep_quotas()):
        print(f"testbed: removed {left}, left by one that was killed")
    share = cores or SHARED_CORES * (os.cpu_count() or 1) / len(names)
    with Quotas(names if real or cores else [], share) as quotas:
        if quotas.missing:
            print(f"testbed: no CPU quotas ({quotas.missing}): devices slow each other down")
        try:
            begins_s = _run(scenario, source, overrides, out, replay, quotas, started, real)
        finally:
            for process in started:
                process.wait()  # the namespaces' end has ended them
    found = comparison(out / "run.timings.jsonl", out / "run" / "rounds.jsonl", replay, begins_s)
    if replay is not None:
        print(f"testbed: {shown(replay, begins_s[-1] + found['rounds'][-1]['wall_s'])}")
    return found | {"begins_s": begins_s}


def _run(
    scenario: Scenario,
    source: str,
    overrides: Sequence[str],
    out: Path,
    replay: Replay | None,
    quotas: Quotas,
    started: list[subprocess.Popen[bytes]],
    real: bool,
) -> list[float]:
    names = scenario.client_names
    with Links(names) as links, tempfile.TemporaryDirectory(prefix="airtune-") as short:
        if out.exists():
            raise InputError(f"--out '{out}' exists: give a new folder")
        out.mkdir(parents=True)
        settings = [f"--set={value}" for value in overrides]
        addresses = [f"--address={links.server_address(name)}" for name in names]
        bands = Path(short) / "bands"
        with Shaper(links, bands, replay) as shaper:
            _command(out, links, links.server, "deploy", "keys", "server", *addresses)
            _command(out, links, links.server, "deploy", "keys", "device", *names)
            serve = ("deploy", "server", "--port", str(PORT))
            server = links.inside(links.server, [*CLI, *serve])
            started.append(_start(out, "server", server))
            _wait(out, "server", "ready on", 300)
            public = [f"keys/{name}.pub" for name in names]
            _command(out, links, links.server, "deploy", "register", *public)
            for name in names:
                where = f"{links.server_address(name)}:{PORT}"
                join = ("deploy", "device", "--server", where, "--client", name)
                emulated = () if real else ("--emulate", "scenario")
                how = ("--scenario", source, *settings, "--pace", "none", "--poll", "0.2")
                device = links.inside(links.namespace(name), [*CLI, *join, *how, *emulated])
                started.append(_start(out, name, quotas.within(name, device)))
            for name in names:
                _wait(out, name, "is ready", 600)
            _command(
                out, links, links.server, "deploy", "run", source, *settings, "--out", "run",
                "--bands", str(bands), "--wait", "600",
                shown=True,
            )  # fmt: skip
        return shaper.begins_s


def _command(out: Path, links: Links, namespace: str, *arguments: str, shown: bool = False) -> None:
    done = subprocess.run(
        links.inside(namespace, [*CLI, *arguments]),
        cwd=out, env=_environment(), text=True, check=False,
        stdout=None if shown else subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise RunError(f"{' '.join(arguments[:3])}: {said[-1]}; logs are in {out}")


def _start(out: Path, name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with (out / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=out, env=_environment(), stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _wait(out: Path, name: str, text: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    log = out / f"{name}.log"
    while text not in (said := log.read_text(errors="replace")):
        failed = [line for line in said.splitlines() if line.startswith(("airtune: ", "Error"))]
        if failed or time.monotonic() > deadline:
            raise RunError(f"{name} did not start: {(failed or ['no sign of it'])[-1]}")
        time.sleep(0.2)


def _environment() -> dict[str, str]:
    # One thread a device: they share this machine's cores.
    own = {"PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0")
    return value


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default=str(Path(__file__).parent / "cell.toml"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", default=f"runs/testbed-{time.strftime('%Y%m%d-%H%M%S')}")
    parser.add_argument(
        "--trace", help="a recorded trace (docs/channel.md) that modulates the uplinks"
    )
    parser.add_argument(
        "--trace-from", type=float, default=0.0, metavar="S", help="where in it the run begins"
    )
    parser.add_argument("--cores", type=_positive, help="of this machine, for each device")
    parser.add_argument("--real", action="store_true", help="devices take their own time")
    given = parser.parse_args()
    if given.trace_from and given.trace is None:
        parser.error("--trace-from is a place in a trace: give --trace, too")
    return given


if __name__ == "__main__":
    status = main()
    shutil.rmtree(Path(__file__).parent / "__pycache__", ignore_errors=True)
    sys.exit(status)
