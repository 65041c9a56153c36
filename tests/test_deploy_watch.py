"""A device's connection is watched: what is started again, and what ends the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from airtune.deploy.processes import Unreachable
from airtune.deploy.supernode import Contact
from airtune.deploy.watch import FORGOTTEN_S, MOST_FAILURES, SILENT_S, Parts, Watch
from airtune.errors import InputError, RunError


class Held:
    """Stands for child processes."""

    def __init__(self) -> None:
        self.starts = 0
        self.over = False

    def start(self, name: str, command: list[str]) -> None:
        assert name == "supernode"
        self.starts += 1
        self.over = False

    def ended(self) -> list[str]:
        return ["supernode"] if self.over else []

    def log(self, name: str) -> str:
        return "why it ended"


class Scene:
    """A watch with everything around it replaced."""

    def __init__(self, folder: Path, *, known: bool = False) -> None:
        self.now, self.bytes = 1000.0, 0
        self.held, self.said, self.ready = Held(), list[str](), 0
        self.check: Exception | None = None
        self.contact = Contact(folder / "contact", lambda: self.now)
        marker = folder / "admitted"
        if known:
            marker.touch()
        parts = Parts(
            lambda: ["supernode"], folder / "contact", marker, self.reach, lambda: self.bytes
        )
        self.watch = Watch(
            self.held,  # type: ignore[arg-type]
            "jetson-1", parts, self.count, self.said.append, lambda: self.now,
        )  # fmt: skip
        self.marker = marker

    def reach(self) -> None:
        if self.check is not None:
            raise self.check

    def count(self) -> None:
        self.ready += 1

    def pass_s(self, seconds: float, *, answered: bool = False) -> None:
        for _ in range(int(seconds)):
            self.now += 1.0
            if answered:
                self.contact.answered("/v1/fleet/pull-messages")
            self.watch.step()

    def refuse(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.contact.refused(412)
            self.pass_s(1)

    def end_every_second(self, times: int) -> None:
        for _ in range(times):
            self.held.over = True
            self.pass_s(1)


def test_ready_means_admitted(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(5)
    scene.contact.answered("/v1/fleet/activate-node")
    scene.pass_s(2)
    assert scene.ready == 0
    scene.pass_s(2, answered=True)
    assert (scene.ready, scene.said, scene.marker.exists()) == (1, [], True)


def test_supernode_is_started_again_when_it_ends(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    scene.held.over = True
    scene.pass_s(4)
    assert scene.held.starts == 2
    scene.pass_s(2, answered=True)
    assert scene.ready == 1
    assert scene.said == [
        "jetson-1: SuperNode ended (why it ended); starting it again",
        "jetson-1 is connected again",
    ]


def test_one_that_ends_again_and_again_ends_the_device(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    with pytest.raises(RunError, match=f"ended {MOST_FAILURES} times in a row: why it ended"):
        scene.end_every_second(100)
    assert scene.held.starts == MOST_FAILURES


def test_while_the_server_is_away_no_number_of_ends_ends_the_device(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    scene.check = Unreachable("server: cannot be reached")
    scene.end_every_second(100)
    assert scene.held.starts > MOST_FAILURES


def test_a_stranger_is_turned_away_at_once_a_known_device_is_patient(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.contact.refused(412)
    with pytest.raises(RunError, match="turned this device away"):
        scene.pass_s(1)
    scene = Scene(tmp_path, known=True)
    scene.refuse(FORGOTTEN_S - 1)
    scene.contact.answered("/v1/fleet/activate-node")
    scene.pass_s(1, answered=True)
    assert scene.ready == 1
    with pytest.raises(RunError, match="turned this device away"):
        scene.refuse(FORGOTTEN_S + 2)


def test_silence_starts_anew_once_the_server_is_there(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    scene.check = Unreachable("server: cannot be reached")
    scene.pass_s(3 * SILENT_S)
    assert scene.held.starts == 1
    assert len(scene.said) == 1
    scene.check = None
    scene.pass_s(SILENT_S + 1)
    assert scene.held.starts == 2


def test_a_slow_start_is_given_more_time_each_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(SILENT_S + 2)
    assert scene.held.starts == 2
    scene.pass_s(2 * SILENT_S - 5)
    assert scene.held.starts == 2
    scene.pass_s(10)
    assert scene.held.starts == 3
    scene.pass_s(4 * SILENT_S - 10, answered=True)
    assert scene.ready == 1
    scene.pass_s(SILENT_S + 2)  # after a connection, as short as ever
    assert scene.held.starts == 4


def test_a_long_upload_is_no_silence(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    for _ in range(200):
        scene.bytes += 5000
        scene.pass_s(1)
    assert scene.held.starts == 1


def test_a_device_that_stood_still_is_not_started_anew(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    scene.now += 120
    scene.watch.step()
    scene.pass_s(10)
    assert (scene.held.starts, scene.said) == (1, [])


def test_another_certificate_ends_the_device(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.pass_s(2, answered=True)
    scene.check = InputError("its certificate is not accepted")
    with pytest.raises(InputError, match="certificate"):
        scene.pass_s(SILENT_S + 2)
