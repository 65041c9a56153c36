"""A disk that is killed under the run, or full."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune.errors import RunError
from airtune.record import files, read_record
from fake_record import ROUNDS, create, one_line, resume

# Kill -9


def without_wall_time(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "wall_s"} for line in lines]


TOY = [sys.executable, str(Path(__file__).with_name("toy_run.py"))]


@pytest.fixture
def quick_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: flushing a busy disk hundreds of times is slow."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else tmp_path) as folder:
        yield Path(folder)


def test_dying_at_any_change_of_the_disk_then_resume_gives_the_same_rounds(
    quick_folder: Path,
) -> None:
    command = [*TOY, str(quick_folder), "3", "everywhere"]
    subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)
    *interrupted, whole = sorted(quick_folder.iterdir())
    assert len(interrupted) > 40
    assert len(without_wall_time(whole)) == 3
    for folder in interrupted:
        assert without_wall_time(folder) == without_wall_time(whole), folder.name
        assert read_record(folder).finished


def test_kill_at_any_moment_then_resume_gives_the_same_rounds(quick_folder: Path) -> None:
    rounds = 150
    subprocess.run(
        [*TOY, str(quick_folder / "whole"), str(rounds)],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    folder = quick_folder / "killed"
    moments = random.Random(5)
    kills = 0
    while not is_finished(folder):
        with subprocess.Popen([*TOY, str(folder), str(rounds)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # past the imports
            enough = lines_in(folder) + moments.randint(-1, 15)
            while process.poll() is None and lines_in(folder) < enough:
                time.sleep(0.0005)
            time.sleep(moments.uniform(0, 0.004))
            process.send_signal(signal.SIGKILL)
        assert process.returncode in (0, -signal.SIGKILL)
        kills += process.returncode != 0
        assert kills < 100
    assert kills
    assert without_wall_time(folder) == without_wall_time(quick_folder / "whole")


def is_finished(folder: Path) -> bool:
    return (folder / "run.json").exists() and read_record(folder).finished


def lines_in(folder: Path) -> int:
    rounds = folder / "rounds.jsonl"
    return rounds.read_bytes().count(b"\n") if rounds.exists() else 0


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A folder of its own file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not mounted or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    with open(folder / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            file.truncate(max(0, file.tell() - leave))


def test_a_full_disk_fails_the_run_in_one_line_and_loses_nothing(small_disk: Path) -> None:
    folder = small_disk / "run"

    def run() -> None:
        with create(folder) as directory:
            for record in ROUNDS:
                directory.append_round(record)
                directory.save_checkpoint(record.round, {"w": np.zeros(record.round * 2000)}, {})
                if record.round == 2:
                    fill(folder, leave=20_000)

    with pytest.raises(RunError) as error:
        run()
    text = one_line(error)
    assert "no space left to write" in text
    assert "round-00003" in text
    assert "48.3 kB needed" in text
    assert "kB free" in text
    assert read_record(folder).rounds == tuple(ROUNDS[:3])
    (folder / "ballast").unlink()
    with resume(folder) as directory:
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 2
        assert read_record(folder).rounds == tuple(ROUNDS[:2])


def test_half_a_line_on_a_full_disk_is_taken_back(small_disk: Path) -> None:
    folder = small_disk / "run"
    record = replace(ROUNDS[0], method="m" * 30_000)
    with create(folder) as directory:
        directory.append_round(ROUNDS[0])
        fill(folder, leave=8192)
        size = (folder / "rounds.jsonl").stat().st_size
        with pytest.raises(RunError, match=r"rounds\.jsonl"):
            directory.append_round(replace(record, round=2))
        assert (folder / "rounds.jsonl").stat().st_size == size
        (folder / "ballast").unlink()
        directory.append_round(ROUNDS[1])
    assert read_record(folder).rounds == tuple(ROUNDS[:2])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failed_flush_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with create(tmp_path / "run") as directory:
        directory.append_round(ROUNDS[0])

        def fail(descriptor: int) -> None:
            raise OSError(code, os.strerror(code))

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", fail)
            with pytest.raises(RunError) as error:
                directory.append_round(ROUNDS[1])
            with pytest.raises(RunError):
                directory.save_checkpoint(2, {}, {})
            with pytest.raises(RunError):
                directory.finish()
        assert "rounds.jsonl" in one_line(error)
        assert "what was recorded is kept" in str(error.value)
        left = os.listdir(tmp_path / "run/checkpoint")
        assert [name for name in left if name != "rounds.jsonl"] == []
        assert read_record(tmp_path / "run").rounds == (ROUNDS[0],)
        assert read_record(tmp_path / "run").status == "running"
