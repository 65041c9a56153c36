"""A run made longer, interrupted, and asked for before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.record import RunDirectory, read_record
from fake_record import ROUNDS, VALUES, create, one_line, resume, started


def finished(folder: Path) -> Path:
    with resume(started(folder)) as directory:
        directory.finish()
    return folder


def longer(rounds: int, **evaluation: Any) -> dict[str, Any]:
    return {**VALUES, "rounds": rounds, "evaluation": {**VALUES["evaluation"], **evaluation}}


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run")
    before = (folder / "rounds.jsonl").read_bytes()
    with resume(folder, scenario_values=longer(6)) as directory:
        assert not directory.finished
        assert "made longer: from 4 to 6 rounds" in directory.notices[0]
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 4
    record = read_record(folder)
    assert record.scenario["rounds"] == 6
    assert (record.status, record.ended_at) == ("running", None)
    assert (folder / "rounds.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "evaluation", [{"every_rounds": 3}, {"generate": True}, {"metrics_every_round": False}]
)
def test_a_last_round_that_is_measured_in_another_way_is_computed_again(
    tmp_path: Path, evaluation: dict[str, Any]
) -> None:
    folder, values = tmp_path / "run", longer(4, **evaluation)
    started(folder, scenario_values=values)
    with resume(folder, scenario_values=longer(6, **evaluation)) as directory:
        assert "round 4 was measured as the last one" in directory.notices[1]
        checkpoint = directory.load_checkpoint()
        assert checkpoint is not None
        assert checkpoint.round == 3
    assert read_record(folder).rounds == tuple(ROUNDS[:3])
    with resume(folder, scenario_values=longer(6, **evaluation)) as directory:
        assert not any("measured as the last" in notice for notice in directory.notices)


def test_a_run_is_not_made_longer_where_its_rounds_depend_on_their_number(tmp_path: Path) -> None:
    linear = {"training": {**VALUES["training"], "learning_rate_schedule": "linear"}}
    folder = started(tmp_path / "run", scenario_values={**VALUES, **linear})
    before = (folder / "run.json").read_bytes()
    with pytest.raises(InputError) as error:
        resume(folder, scenario_values={**longer(6), **linear})
    assert "learning_rate_schedule = 'linear'" in one_line(error)
    assert (folder / "run.json").read_bytes() == before
    with pytest.raises(InputError, match="can be made longer, not shorter"):
        resume(folder, scenario_values={**longer(3), **linear})


def test_a_changed_description_does_not_stand_in_the_way(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", 2)
    with resume(folder, scenario_values={**VALUES, "description": "in other words"}):
        assert read_record(folder).scenario["description"] == "in other words"


# Ctrl-C


def test_an_interrupted_run_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    def run() -> None:
        with create(tmp_path / "run") as directory:
            directory.append_round(ROUNDS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    record = read_record(tmp_path / "run")
    assert (record.status, record.error, len(record.rounds)) == ("interrupted", None, 1)
    assert record.ended_at is not None
    with resume(tmp_path / "run"):
        assert read_record(tmp_path / "run").status == "running"


# Asking first


def test_checking_refuses_what_starting_would_and_changes_nothing(tmp_path: Path) -> None:
    def check(folder: Path, **options: Any) -> None:
        wanted = {"scenario_values": VALUES, "method": "exact", **options}
        RunDirectory.check(folder, **wanted)

    check(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    folder = started(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="already holds a run"):
        check(folder)
    with pytest.raises(InputError, match="method was 'exact' and is now 'none'"):
        check(folder, method="none", resume=True)
    with pytest.raises(InputError, match="no such folder"):
        check(tmp_path / "new", resume=True)
    check(folder, resume=True)
    check(folder, replace=True)
    assert sorted(folder.rglob("*")) == before
    with resume(folder), pytest.raises(InputError, match="another process is writing"):
        check(folder, replace=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        check(tmp_path / "file")
