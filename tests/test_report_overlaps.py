"""The page of a run whose rounds are not synchronous."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_record
from airtune.record import Record, RoundRecord, TurnRecord, read_record
from airtune.record.schema import from_json, json_line
from airtune.report.overlaps import overlaps
from airtune.report.page import render_run


def turn(name: str, number: int, times: tuple[float, float, float, float]) -> TurnRecord:
    return TurnRecord(
        name=name,
        turn=number,
        start_round=0,
        staleness=1,
        share=0.7,
        started_s=times[0],
        received_s=times[1],
        computed_s=times[2],
        ended_s=times[3],
        uplink_bits=1e6,
    )


@pytest.fixture
def record(tmp_path: Path) -> Record:
    run = read_record(fake_record.write_run(tmp_path / "run", clients=3, rounds_=2))
    names = [client.name for client in run.rounds[0].clients]
    turns = [
        (turn(names[0], 1, (0.0, 1.0, 4.0, 10.0)),),
        (turn(names[1], 1, (0.0, 2.0, 8.0, 20.0)), turn(names[0], 2, (10.0, 11.0, 15.0, 20.0))),
    ]
    rounds = tuple(
        replace(r, turns=own, elapsed_s=10.0 * (i + 1))
        for i, (r, own) in enumerate(zip(run.rounds, turns, strict=True))
    )
    return replace(run, rounds=rounds)


def test_turns_come_back_from_the_line_that_they_are_written_as(record: Record) -> None:
    for r in record.rounds:
        assert from_json(RoundRecord, json.loads(json_line(r)), "line") == r
        plain = replace(r, turns=())
        assert "turns" not in json.loads(json_line(plain))
        assert from_json(RoundRecord, json.loads(json_line(plain)), "line") == plain


def test_every_turn_is_drawn_where_it_was_and_every_merge_is_a_line(record: Record) -> None:
    figure = overlaps(record)
    assert figure is not None
    body = str(figure.body)
    assert body.count('<g class="row">') == 3
    assert body.count('<line class="predicted"') == 2
    high = 20.0 * 1.04
    spans = re.findall(r'<rect class="(\w+)" x="([\d.]+)%" width="([\d.]+)%"', body)
    wanted = [("download", 0.0, 2.0), ("compute", 2.0, 6.0), ("upload", 8.0, 12.0)]
    assert [(p, float(x), float(w)) for p, x, w in spans[3:6]] == [
        (phase, pytest.approx(100 * at / high, abs=1e-3), pytest.approx(100 * w / high, abs=1e-3))
        for phase, at, w in wanted
    ]
    assert "merged in round 2" in body


def test_the_page_shows_the_turns_in_place_of_the_rounds_timeline(record: Record) -> None:
    page = render_run(record)
    assert 'id="overlaps"' in page
    assert 'id="timeline"' not in page
    assert "to each client" in page
    plain = replace(record, rounds=tuple(replace(r, turns=()) for r in record.rounds))
    assert 'id="overlaps"' not in render_run(plain)
    assert 'id="timeline"' in render_run(plain)
