"""A deployment on this machine for tests: keys, server, devices, runs; ends every process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from airtune.deploy.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
CLI = [sys.executable, "-c", "from airtune.cli import main; main()"]
SCENARIO = [
    "devices=[{profile='jetson-orin-nano', utilisation=1e-6}, {profile='raspberry-pi-5'}]",
    "task.train_examples=96",
    "task.eval_examples=16",
    "training.local_steps=2",
]
PATIENCE = float(os.environ.get("AIRTUNE_TEST_PATIENCE", "1"))
"""Times the longest waits: on a busy machine the start of a process alone may take minutes."""
CLIENTS = ("jetson-orin-nano-1", "raspberry-pi-5-1")


class Deployment:
    """Processes of one deployment under a folder; use it in a `with` block."""

    def __init__(self, folder: Path, *, secure: bool = True, overrides: Sequence[str] = ()) -> None:
        self.folder, self.secure = folder, secure
        self.port = free_port()
        self._settings = [f"--set={value}" for value in (*SCENARIO, *overrides)]
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        if secure:
            self.airtune("deploy", "keys", "server", "--address", "127.0.0.1")

    def __enter__(self) -> Deployment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if error is not None:
            for log in sorted(self.folder.glob("**/*.log")):
                print(f"--- {log}\n{log.read_text(errors='replace')[-1500:]}")

    def airtune(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [*CLI, *arguments], cwd=self.folder, env=self._environment(), text=True,
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def start_server(self) -> None:
        """Start the server and wait until it listens."""
        trust = [] if self.secure else ["--insecure"]
        command = ("deploy", "server", "--host", "127.0.0.1", "--port", str(self.port), *trust)
        self._start("server", *command)
        self.wait_for("server", "ready on")

    def admit(self, client: str, key: str | None = None) -> None:
        """Make a device's key and register it."""
        self.airtune("deploy", "keys", "device", key or client)
        self.airtune("deploy", "register", f"keys/{key or client}.pub", "--client", client)

    def start_device(self, client: str, *extra: str, name: str = "") -> None:
        """Start a device; `wait_for(client, "is ready")` says when it looks for work."""
        trust = [] if self.secure else ["--insecure"]
        self._start(
            name or client, "deploy", "device", "--server", f"127.0.0.1:{self.port}", "--client",
            client, "--scenario", "tiny", *self._settings, "--poll", "0.2", *trust, *extra,
        )  # fmt: skip

    def start_devices(self, clients: Sequence[str] = CLIENTS) -> None:
        """Admit and start several devices and wait until they look for work."""
        for client in clients:
            if self.secure:
                self.admit(client)
            self.start_device(client)
        for client in clients:
            self.wait_for(client, "is ready")

    def start_run(self, *extra: str) -> None:
        """Begin a run in the folder `run`."""
        command = ("deploy", "run", "tiny", *self._settings)
        self._start("run", *command, "--out", "run", *extra)

    def finish(self, name: str = "run", timeout_s: float = 480.0) -> int:
        """Wait for a process to end; return its status."""
        return self._running.pop(name).wait(PATIENCE * timeout_s)

    def said(self, name: str) -> str:
        """Return what a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str, timeout_s: float = 300.0) -> None:
        """Wait until a process has printed something; fails when it ends before."""
        self.wait_until(lambda: text in self.said(name), f"{name}: {text}", timeout_s, watched=name)

    def wait_until(
        self,
        condition: Callable[[], bool],
        what: str,
        timeout_s: float = 300.0,
        watched: str | None = None,
    ) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + PATIENCE * timeout_s
        while not condition():
            gone = watched is not None and self._running[watched].poll() is not None
            if gone and not condition():
                raise AssertionError(f"{watched} ended: {self.said(str(watched))[-2000:]}")
            assert time.monotonic() < deadline, f"no sign of: {what}"
            time.sleep(0.1)

    def attach(self) -> None:
        """Show the run again, as `attached`."""
        self._start("attached", "deploy", "attach")

    def end(self, name: str, timeout_s: float = 30.0) -> None:
        """Ask a process to end, and wait."""
        process = self._running.pop(name)
        process.terminate()
        process.wait(timeout_s)

    def kill(self, name: str) -> None:
        """End a process without a word, as a pulled plug does; the kernel ends its children."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str) -> None:
        """Freeze a process and everything below it."""
        for pid in self.tree(self._running[name].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """Let a frozen process go on."""
        for pid in self.tree(self._running[name].pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def tree(self, pid: int) -> list[int]:
        """Return a process and everything that it started, directly or not."""
        found, new = [pid], [pid]
        while new:
            listed = subprocess.run(
                ["ps", "-o", "pid=", "--ppid", ",".join(map(str, new))],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            new = [int(child) for child in listed.stdout.split() if int(child) not in found]
            found += new
        return found

    def pid(self, name: str) -> int:
        """Return a process's id."""
        return self._running[name].pid

    def running(self, name: str) -> bool:
        """Say whether a process is still there."""
        return name in self._running and self._running[name].poll() is None

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [*CLI, *arguments], cwd=self.folder, env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            # The processes run elsewhere: a relative path would find another airtune.
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
