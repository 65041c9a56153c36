"""Resuming a run: whose it is, from which checkpoint, and what was lost."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_record
from airtune.errors import InputError
from airtune.record import read_record
from fake_record import ROUNDS, VALUES, create, one_line, resume, started

# Resuming


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "bcd"}, "method was 'exact' and is now 'bcd'"),
        ({"scenario_values": {**VALUES, "seed": 9}}, "seed was 0 and is now 9"),
        (
            {"scenario_values": {**VALUES, "cell": {**VALUES["cell"], "radius_m": 300.0}}},
            "cell.radius_m was 250.0 and is now 300.0",
        ),
        (
            {"scenario_values": {**VALUES, "devices": VALUES["devices"][:1]}},
            "devices.1.profile was 'jetson-orin-nano' and is now 'not set'",
        ),
    ],
)
def test_resuming_another_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    folder = started(tmp_path / "run")
    with pytest.raises(InputError) as error:
        resume(folder, **changes)
    assert complaint in one_line(error)


def test_resuming_with_another_version_is_refused(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    info["versions"]["airtune"] = "0.0.1"
    (folder / "run.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"airtune version was '0\.0\.1'"):
        resume(folder)


def test_another_library_version_is_said(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    info["versions"]["numpy"] = "1.0"
    (folder / "run.json").write_text(json.dumps(info))
    with resume(folder) as directory:
        assert "numpy 1.0" in directory.notices[0]


def test_resuming_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        resume(tmp_path / "nowhere")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"no run\.json"):
        resume(tmp_path)


def test_a_run_killed_before_it_wrote_anything_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-run.json").write_text("{")
    with resume(tmp_path) as directory:
        assert "starting from the beginning" in directory.notices[0]
        assert directory.load_checkpoint() is None
    assert read_record(tmp_path).rounds == ()


def test_a_finished_run_has_nothing_to_resume(tmp_path: Path) -> None:
    fake_record.write_run(tmp_path / "run", clients=2, rounds_=4)
    before = (tmp_path / "run/run.json").read_bytes()
    with resume(tmp_path / "run") as directory:
        assert directory.finished
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_resumed_run_must_find_the_same_weights(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    described = replace(fake_record.description(VALUES), model_fingerprint="feedface")
    with (
        pytest.raises(InputError, match="feedface"),
        resume(folder) as directory,
    ):
        directory.describe(described)


def test_an_error_ends_the_run_as_failed_and_resuming_clears_it(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), create(tmp_path / "run") as directory:
        raise RuntimeError("two\nlines")
    record = read_record(tmp_path / "run")
    assert (record.status, record.error) == ("failed", "two lines")
    with resume(tmp_path / "run") as directory:
        assert not directory.finished
    record = read_record(tmp_path / "run")
    assert (record.status, record.error, record.ended_at) == ("running", None, None)


# Checkpoints


def test_checkpoint_gives_back_exactly_what_was_saved(tmp_path: Path) -> None:
    tensors = {
        "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "step": np.float32(3.0).reshape(()),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 4)),
    }
    payload = {"elapsed_s": 0.1 + 0.2, "name": "é", "nested": {"list": [1, None]}}
    with create(tmp_path / "run") as directory:
        directory.append_round(ROUNDS[0])
        directory.save_checkpoint(1, tensors, payload)
        checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.payload == payload
    for name, value in tensors.items():
        np.testing.assert_array_equal(checkpoint.tensors[name], value)
        assert checkpoint.tensors[name].shape == value.shape
        assert checkpoint.tensors[name].dtype == value.dtype


def checkpoints(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder / "checkpoint") if name.startswith("round-"))


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    assert checkpoints(folder) == ["round-00003", "round-00004"]


def cut_tensors(checkpoint: Path) -> None:
    os.truncate(checkpoint / "state.safetensors", 20)


def alter_tensors(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (checkpoint / "state.safetensors").write_bytes(data)


def alter_payload(checkpoint: Path) -> None:
    text = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(text.replace('"elapsed_s": ', '"elapsed_s": 1'))


def cut_state(checkpoint: Path) -> None:
    os.truncate(checkpoint / "state.json", 50)


def remove_state(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


def remove_tensors(checkpoint: Path) -> None:
    (checkpoint / "state.safetensors").unlink()


DAMAGES = [cut_tensors, alter_tensors, alter_payload, cut_state, remove_state, remove_tensors]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    folder = started(tmp_path / "run")
    damage(folder / "checkpoint/round-00004")
    with resume(folder) as directory:
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 3
        assert checkpoint.tensors["w"].tolist() == [3.0] * 3
        assert "checkpoint of round 4 cannot be used" in directory.notices[0]
        assert read_record(folder).rounds == tuple(ROUNDS[:3])
        directory.append_round(ROUNDS[3])
        directory.save_checkpoint(4, {"w": np.zeros(1)}, {})
    assert read_record(folder).rounds == tuple(ROUNDS)


@pytest.mark.parametrize("damage", [shutil.rmtree, cut_tensors])
def test_without_a_usable_checkpoint_the_run_starts_over(tmp_path: Path, damage: Any) -> None:
    folder = started(tmp_path / "run")
    for round in (3, 4):
        damage(folder / f"checkpoint/round-0000{round}")
    with resume(folder) as directory:
        assert directory.load_checkpoint() is None
        assert "starting from round 1" in directory.notices[-1]
        assert read_record(folder).rounds == ()
        assert checkpoints(folder) == []


def test_a_line_without_its_checkpoint_is_computed_again(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", rounds_=2)
    with resume(folder) as directory:
        directory.append_round(ROUNDS[2])  # and killed before its checkpoint
    with open(folder / "rounds.jsonl", "a") as file:
        file.write('{"round": 4, "met')
    (folder / "checkpoint/.tmp-round-00003").mkdir()
    with resume(folder) as directory:
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 2
        for record in ROUNDS[2:]:
            directory.append_round(record)
    assert read_record(folder).rounds == tuple(ROUNDS)
    assert not (folder / "checkpoint/.tmp-round-00003").exists()


def test_a_checkpoint_without_its_line_is_not_used(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    (folder / "checkpoint/rounds.jsonl").unlink()  # as an earlier version left it
    cut(folder, 3)
    with resume(folder) as directory:
        checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 3


# Lost lines


def cut(folder: Path, lines: int, *, half: bool = False) -> bytes:
    """Leave that many lines of rounds.jsonl, and half of the next; return what was there."""
    path = folder / "rounds.jsonl"
    before = path.read_bytes()
    there = before.splitlines(keepends=True)
    path.write_bytes(b"".join(there[:lines]) + (there[lines][:99] if half else b""))
    return before


def finished(folder: Path) -> Path:
    with resume(started(folder)) as directory:
        directory.finish()
    return folder


@pytest.mark.parametrize("lines", [None, 0, 2, 3])
@pytest.mark.parametrize("half", [False, True])
def test_lines_that_a_finished_run_lost_are_restored(
    tmp_path: Path, lines: int | None, half: bool
) -> None:
    folder = finished(tmp_path / "run")
    before = cut(folder, lines or 0, half=half)
    if lines is None:
        (folder / "rounds.jsonl").unlink()
    record = read_record(folder)
    assert (record.status, record.finished) == ("incomplete", False)
    assert f"only {lines or 0} of its 4 rounds" in str(record.loss)
    with resume(folder) as directory:
        assert directory.finished
        (notice,) = directory.notices
        assert "restored from the checkpoint" in notice
        assert ("had lost round 4:" if lines == 3 else "to 4") in notice
    assert (folder / "rounds.jsonl").read_bytes() == before
    assert read_record(folder).finished


def test_lines_of_which_there_is_no_copy_are_computed_again(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    (folder / "checkpoint/rounds.jsonl").unlink()
    before = cut(folder, 3)
    with resume(folder) as directory:
        assert not directory.finished
        assert "has lost round 4 of the finished run" in directory.notices[0]
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 3
        assert read_record(folder).status == "running"
        directory.append_round(ROUNDS[3])
        directory.save_checkpoint(4, {}, {})
        directory.finish()
    assert (folder / "rounds.jsonl").read_bytes() == before
    assert (folder / "checkpoint/rounds.jsonl").read_bytes() == before


def test_a_copy_of_other_lines_is_not_believed(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    cut(folder, 1)
    copy = folder / "checkpoint/rounds.jsonl"
    copy.write_bytes(copy.read_bytes().replace(b"exact", b"guess"))
    with resume(folder) as directory:
        assert directory.load_checkpoint() is None
        assert read_record(folder).rounds == ()


def test_an_error_does_not_remove_a_run_whose_lines_are_lost(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    (folder / "rounds.jsonl").unlink()
    (folder / "checkpoint/rounds.jsonl").unlink()
    with pytest.raises(InputError), resume(folder):
        raise InputError("the model cannot be loaded")
    assert (folder / "run.json").exists()
    assert checkpoints(folder) == ["round-00003", "round-00004"]
