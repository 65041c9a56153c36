"""Network namespaces joined by shaped links, and nothing left behind.

A star: one namespace for the server, one a device, a veth pair each. The device's end carries
its uplink, the server's end that device's downlink; a token bucket filter on either sets the
rate. Names carry this process's id, so that two testbeds do not meet, and `close` removes every
namespace (links go with them) and ends whatever still runs inside.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from airtune.errors import InputError, RunError

# Per full Ethernet frame: 1448 bytes of the stream, 66 of Ethernet, IP and TCP with timestamps.
FRAME_BYTES, STREAM_BYTES = 1514, 1448
NAMESPACES = Path("/run/netns")
_START = 19
"""When a process began, among the fields of /proc/PID/stat after its name."""
UPLINK = "radio0"
"""A device's interface towards the server."""


def missing() -> str | None:
    """Say what this machine lacks for a testbed, or None."""
    if not sys.platform.startswith("linux"):
        return "the testbed needs Linux: network namespaces and tc"
    for command in ("ip", "tc"):
        if shutil.which(command) is None:
            return f"the testbed needs the command `{command}` (iproute2)"
    if os.geteuid() != 0:
        return "the testbed needs root: it makes network namespaces"
    name = f"airtune{os.getpid()}try"
    made = _ip("netns", "add", name)
    if made.returncode != 0:
        return f"network namespaces are not allowed here: {made.stderr.strip()}"
    try:
        tried = _run(["tc", "-n", name, *_qdisc("lo", 1e6)])
        if tried.returncode != 0:
            return f"tc has no token bucket filter here: {tried.stderr.strip()}"
    finally:
        _ip("netns", "delete", name)
    return None


class Links:
    """The star; use it in a `with` block.

    Args:
        devices: names of the devices, in order.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        lack = missing()
        if lack is not None:
            raise InputError(lack)
        if len(devices) > 250:
            raise InputError(f"{len(devices)} devices: a testbed has at most 250")
        self._devices = list(devices)
        self._prefix = f"airtune{os.getpid()}"
        self.server = f"{self._prefix}s"
        self._shaped: dict[tuple[str, str], float] = {}

    def __enter__(self) -> Links:
        try:
            for namespace in (self.server, *map(self.namespace, self._devices)):
                _must("netns", "add", namespace)
                _must("-n", namespace, "link", "set", "lo", "up")
            for device in self._devices:
                self._join(device)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def namespace(self, device: str) -> str:
        """Return the namespace of a device."""
        return f"{self._prefix}d{self._devices.index(device)}"

    def server_address(self, device: str) -> str:
        """Return the server's address on a device's link."""
        return f"10.77.{self._devices.index(device) + 1}.1"

    def inside(self, namespace: str, command: Sequence[str]) -> list[str]:
        """Return a command line that runs a command in a namespace."""
        return ["ip", "netns", "exec", namespace, *command]

    def shape(self, device: str, *, uplink_bps: float, downlink_bps: float) -> None:
        """Set what the stream of a device's link carries in each direction, bit/s.

        The filter counts whole frames, so it is set above the wanted rate by their share.
        """
        for namespace, interface, rate_bps in (
            (self.namespace(device), UPLINK, uplink_bps),
            (self.server, self._interface(device), downlink_bps),
        ):
            if self._shaped.get((namespace, interface)) == rate_bps:
                continue
            frames_bps = rate_bps * FRAME_BYTES / STREAM_BYTES
            done = _run(["tc", "-n", namespace, *_qdisc(interface, frames_bps)])
            if done.returncode != 0:
                raise RunError(f"tc, link of {device}: {done.stderr.strip()}")
            self._shaped[namespace, interface] = rate_bps

    def cut(self, device: str, *, down: bool = True) -> None:
        """Cut a device's link, or restore it."""
        state = "down" if down else "up"
        _must("-n", self.namespace(device), "link", "set", UPLINK, state)

    def close(self) -> None:
        """End what runs in the namespaces and remove them."""
        spaces = [self.server, *map(self.namespace, self._devices)]
        for number in (signal.SIGTERM, signal.SIGKILL):
            pids = {pid for space in spaces for pid in _pids(space)}
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            for _ in range(50):
                if not any(_pids(space) for space in spaces):
                    break
                time.sleep(0.1)
        for space in spaces:
            _ip("netns", "delete", space)

    def _interface(self, device: str) -> str:
        return f"d{self._devices.index(device)}"

    def _join(self, device: str) -> None:
        own, far = self.namespace(device), self._interface(device)
        subnet = f"10.77.{self._devices.index(device) + 1}"
        _must("-n", own, "link", "add", UPLINK, "type", "veth", "peer", far, "netns", self.server)
        for namespace, interface, address in (
            (own, UPLINK, f"{subnet}.2/24"),
            (self.server, far, f"{subnet}.1/24"),
        ):
            _must("-n", namespace, "address", "add", address, "dev", interface)
            # One frame at a time: the filter should see what a radio would.
            _must("-n", namespace, "link", "set", interface, "gso_max_segs", "1", "up")


def sweep_links() -> list[str]:
    """Remove the namespaces of testbeds whose process is gone, and what runs in them."""
    removed = []
    for line in _ip("netns", "list").stdout.splitlines():
        space = line.split()[0] if line.split() else ""
        found = re.fullmatch(r"airtune(\d+)(?:s|d\d+|try)", space)
        if found is None or runs_since(int(found[1]), NAMESPACES / space):
            continue
        for pid in _pids(space):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ip("netns", "delete", space)
        removed.append(f"namespace {space}")
    return removed


def runs_since(pid: int, made: Path) -> bool:
    """Say whether the process that made a path still runs; its number may have been given again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        began_s = time.time() - up_s + int(fields[_START]) / os.sysconf("SC_CLK_TCK")
        return began_s <= made.stat().st_mtime + 1.0
    except FileNotFoundError:
        return False


def _qdisc(interface: str, rate_bps: float) -> list[str]:
    burst = max(2 * FRAME_BYTES, int(rate_bps / 8 * 0.005))
    shape = ["rate", f"{max(int(rate_bps), 8)}bit", "burst", str(burst), "latency", "400ms"]
    return ["qdisc", "replace", "dev", interface, "root", "tbf", *shape]


def _pids(namespace: str) -> list[int]:
    return [int(pid) for pid in _ip("netns", "pids", namespace).stdout.split()]


def _must(*arguments: str) -> None:
    done = _ip(*arguments)
    if done.returncode != 0:
        raise RunError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(["ip", *arguments])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
