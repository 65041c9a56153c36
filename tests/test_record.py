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
from hypothesis import given
from hypothesis import strategies as st

import fake_record
from airtune.errors import InputError, RunError
from airtune.record import RunDirectory, files, json_line, read_record
from airtune.record.schema import RoundRecord, from_json, plain

VALUES = fake_record.scenario_values(2, 4)
ROUNDS = fake_record.rounds(VALUES)


def create(folder: Path, **changes: Any) -> RunDirectory:
    return RunDirectory.create(folder, **{"scenario_values": VALUES, "method": "exact", **changes})


def resume(folder: Path, **changes: Any) -> RunDirectory:
    return RunDirectory.resume(folder, **{"scenario_values": VALUES, "method": "exact", **changes})


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def started(folder: Path, rounds: int = 4) -> Path:
    """A run with checkpoints that stopped after some rounds."""
    with create(folder) as directory:
        directory.describe(fake_record.description(VALUES))
        for record in ROUNDS[:rounds]:
            directory.append_round(record)
            values = np.full(3, float(record.round))
            directory.save_checkpoint(record.round, {"w": values}, {"elapsed_s": record.elapsed_s})
    return folder


# What is written comes back


def test_record_reads_back_what_was_written(tmp_path: Path) -> None:
    fake_record.write_run(tmp_path / "run", clients=3, rounds_=4, faults=True)
    record = read_record(tmp_path / "run")
    values = fake_record.scenario_values(3, 4)
    assert record.rounds == tuple(fake_record.rounds(values, faults=True))
    assert record.description == fake_record.description(values)
    assert record.scenario == values
    assert (record.method, record.seed, record.finished) == ("exact", 0, True)
    assert record.results == {"accuracy": 0.21}
    assert record.versions["airtune"]
    assert record.ended_at is not None


def test_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake_record.write_run(tmp_path / name, clients=3, rounds_=4)
    assert (tmp_path / "a/rounds.jsonl").read_bytes() == (tmp_path / "b/rounds.jsonl").read_bytes()


def test_a_line_has_the_fields_of_the_format() -> None:
    line = json.loads(json_line(ROUNDS[0]))
    expected = (
        "round method round_latency_s elapsed_s eval_loss train_loss uplink_bits downlink_bits "
        "flops pruning_loss objective_s lower_bound_s wall_s clients"
    )
    assert set(expected.split()) <= set(line)
    expected = (
        "name pruning bandwidth_hz rate_bps downlink_s compute_s upload_s total_s uplink_bits "
        "status"
    )
    assert set(expected.split()) <= set(line["clients"][0])


@given(st.floats(), st.floats(allow_nan=False, allow_infinity=False))
def test_json_is_strict_and_floats_are_exact(loss: float, latency: float) -> None:
    record = replace(ROUNDS[0], eval_loss=loss, round_latency_s=latency, metrics={"m": loss})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads(json_line(record), parse_constant=refuse)
    back = from_json(RoundRecord, values, "here")
    assert back.round_latency_s == latency
    assert back.eval_loss == (loss if np.isfinite(loss) else None) == back.metrics["m"]


def test_numpy_values_are_written_as_numbers() -> None:
    record = replace(ROUNDS[0], round=np.int64(1), flops=np.float32(0.5), kappa=np.float64(0.25))
    back = from_json(RoundRecord, json.loads(json_line(record)), "here")
    assert (back.round, back.flops, back.kappa) == (1, 0.5, 0.25)
    assert plain({"a": np.arange(2), 3: np.bool_(True)}) == {"a": [0, 1], "3": True}


def test_a_number_that_must_be_finite_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    broken = replace(ROUNDS[1].clients[1], upload_s=float("inf"))
    with create(tmp_path / "run") as directory:
        directory.append_round(ROUNDS[0])
        with pytest.raises(RunError) as error:
            directory.append_round(replace(ROUNDS[1], clients=(ROUNDS[1].clients[0], broken)))
    assert broken.name in one_line(error)
    assert "round 2" in str(error.value)
    assert "'upload_s' is inf" in str(error.value)
    assert read_record(tmp_path / "run").rounds == (ROUNDS[0],)


# Reading what is not right


def test_reading_refuses_folders_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_record(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no run\.json"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_record(tmp_path)
    (tmp_path / "run.json").write_text('{"name": "something else"}')
    with pytest.raises(InputError, match="not the record of a run: no usable 'status'"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "is not a JSON object"),
        ('{"round": 2}', "'method' is missing"),
        (json_line(ROUNDS[1]).replace('"kappa": 0.5', '"kappa": "half"'), "'kappa' is \"half\""),
        (json_line(ROUNDS[1]).replace('"kappa": 0.5', '"kappa": null'), "'kappa' is null"),
        (json_line(ROUNDS[1]).replace('"examples": ', '"examples": 0.5e'), "'examples' is"),
        (json_line(ROUNDS[2]), "'round' is 3, expected 2"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    folder = started(tmp_path / "run", rounds=1)
    with open(folder / "rounds.jsonl", "a") as file:
        file.write(line + "\n")
    for read in (read_record, lambda path: resume(path).__enter__().load_checkpoint()):
        with pytest.raises(InputError) as error:
            read(folder)
        assert "rounds.jsonl, line 2" in one_line(error)
        assert complaint in str(error.value)


def test_a_running_run_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with create(folder) as directory:
        assert read_record(folder).description is None
        directory.append_round(ROUNDS[0])
        with open(folder / "rounds.jsonl", "a") as file:
            file.write(json_line(ROUNDS[1])[:-20])
        record = read_record(folder)
    assert record.rounds == (ROUNDS[0],)
    assert record.status == "running"


# Whose folder it is


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    before = (folder / "rounds.jsonl").read_bytes()
    with pytest.raises(InputError) as error:
        create(folder)
    assert "already holds a run (made-up, exact, running)" in one_line(error)
    assert "--resume" in str(error.value)
    assert (folder / "rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize("replace", [False, True])
def test_a_folder_with_other_files_is_refused(tmp_path: Path, replace: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"is not empty \(it holds 'thesis.tex'\)"):
        create(tmp_path, replace=replace)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_a_foreign_run_json_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"scripts": {}}')
    with pytest.raises(InputError, match="not the record of a run"):
        create(tmp_path, replace=True)
    assert (tmp_path / "run.json").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file"):
        create(tmp_path / "out")
    with pytest.raises(InputError, match="cannot make the folder"):
        create(tmp_path / "out" / "run")


def test_replace_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    (folder / "adapter").mkdir()
    for name in ("adapter/adapter_config.json", "adapter/mine.txt", "notes.md", "report.html"):
        (folder / name).write_text(name)
    with create(folder, replace=True) as directory:
        assert directory.load_checkpoint() is None
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {".lock", "adapter/mine.txt", "notes.md", "run.json"}
    assert read_record(folder).rounds == ()


def test_two_processes_cannot_write_one_folder(tmp_path: Path) -> None:
    with create(tmp_path / "run"):
        for attempt in (create, resume):
            with pytest.raises(InputError) as error:
                attempt(tmp_path / "run")
            assert "another process is writing" in one_line(error)
    resume(tmp_path / "run").close()


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


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    assert sorted(os.listdir(folder / "checkpoint")) == ["round-00003", "round-00004"]


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
        assert os.listdir(folder / "checkpoint") == []


def test_a_line_without_its_checkpoint_is_computed_again(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", rounds=2)
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
    lines = (folder / "rounds.jsonl").read_text().splitlines(keepends=True)
    (folder / "rounds.jsonl").write_text("".join(lines[:3]))
    with resume(folder) as directory:
        checkpoint = directory.load_checkpoint()
    assert checkpoint is not None
    assert checkpoint.round == 3


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
        assert sorted(os.listdir(tmp_path / "run/checkpoint")) == []
        assert read_record(tmp_path / "run").rounds == (ROUNDS[0],)
        assert read_record(tmp_path / "run").status == "running"


def test_recording_does_not_load_torch() -> None:
    code = "import sys, airtune.record; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
