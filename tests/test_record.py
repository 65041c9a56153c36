from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_record
from airtune.errors import InputError, RunError
from airtune.record import json_line, read_record
from airtune.record.schema import (
    ClientRecord,
    ClientSite,
    RoundRecord,
    RunDescription,
    TurnRecord,
    from_json,
    plain,
)
from fake_record import ROUNDS, create, one_line, resume, started

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


@pytest.mark.parametrize(
    "kind", [ClientRecord, TurnRecord, RoundRecord, ClientSite, RunDescription]
)
def test_every_field_is_documented(kind: type) -> None:
    document = (Path(__file__).parents[1] / "docs" / "record.md").read_text()
    missing = [f.name for f in dataclasses.fields(kind) if f"`{f.name}`" not in document]
    assert not missing


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
    ("changes", "named"), [({"scenario": {}}, "scenario.rounds"), ({"cell": 5}, "cell")]
)
def test_a_record_without_what_every_run_has_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    folder = started(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, **changes}))
    with pytest.raises(InputError, match=f"not the record of a run: no usable '{named}'"):
        read_record(folder)


@pytest.mark.parametrize("format", [2, "1", None])
def test_another_format_is_refused(tmp_path: Path, format: Any) -> None:
    folder = started(tmp_path / "run")
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "format": format}))
    for read in (read_record, resume):
        with pytest.raises(InputError) as error:
            read(folder)
        assert f"is of format {json.dumps(format)}: this airtune reads format 1" in one_line(error)


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
        (json_line(replace(ROUNDS[1], clients=())), "'clients' is empty"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    folder = started(tmp_path / "run", rounds_=1)
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


def test_recording_does_not_load_torch() -> None:
    code = "import sys, airtune.record; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
