"""What a run says of itself: units that are hardly meant, and a model that predicts nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

import airtune as at
import fake_record
from airtune.report import loss_of_a_guess
from airtune.rounds.observer import Observer
from airtune.scenario import load_scenario


class Listener(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def noticed(self, what: str) -> None:
        self.heard.append(what)


@pytest.mark.parametrize(("band_hz", "count"), [(20_000.0, 1), (200_000.0, 0)])
def test_a_run_tells_once_of_a_unit_that_is_hardly_meant(
    tmp_path: Path, band_hz: float, count: int
) -> None:
    listener = Listener()
    small = ["rounds=2", "task.eval_examples=8", "training.local_steps=1",
             f"cell.uplink_bandwidth_hz={band_hz}"]  # fmt: skip
    at.run(load_scenario("tiny", small), out=tmp_path / "run", observer=listener)
    told = [line for line in listener.heard if "is a narrow band: 20 MHz?" in line]
    assert len(told) == count


def made_up(folder: Path, *, final: float, initial: float) -> at.Record:
    record = at.read_record(fake_record.write_run(folder))
    assert record.description is not None
    described = replace(record.description, vocabulary=1000, initial_eval_loss=initial)
    last = replace(record.rounds[-1], eval_loss=final)
    return replace(record, description=described, rounds=(*record.rounds[:-1], last))


@pytest.mark.parametrize(
    ("final", "initial", "said"),
    [
        (math.log(1000), 9.0, "the test loss stands at ln V = 6.9"),
        (math.log(1000), 3.0, "the test loss stands at ln V"),
        (9.5, 9.0, "is not lower than before training, and above ln V"),
        (8.0, 9.0, None),  # it learns
        (3.0, 2.5, None),
    ],
)
def test_a_loss_at_ln_v_is_remarked(
    tmp_path: Path, final: float, initial: float, said: str | None
) -> None:
    remark = loss_of_a_guess(made_up(tmp_path / "run", final=final, initial=initial))
    assert (remark is None) == (said is None)
    if said is not None:
        assert remark is not None
        assert said in remark
        assert "V = 1,000" in remark
