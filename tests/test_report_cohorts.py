"""The page of a run with cohorts: sizes, waiting, what was lost, and each round's own clients."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import fake_record
from airtune.record import Record, read_record
from airtune.report.page import render_run
from airtune.report.population import MOST_SHOWN, NOT_DRAWN, shown_clients
from airtune.report.summary import client_summaries, totals
from fake_record import text_of

CLIENTS, SIZE = 60, 2


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """A run of 60 clients over 40 rounds of two: client 0 in all, the others in turn."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    fake_record.write_run(folder, clients=CLIENTS, rounds_=40)
    whole = read_record(folder)
    rounds = []
    for i, r in enumerate(whole.rounds):
        own = (r.clients[0], r.clients[1 + i])
        own = own if i != 3 else (own[0], replace(own[1], status="lost: outage"))
        waited_s = 12.0 if i == 5 else 0.0
        rounds.append(replace(r, clients=own, cohort=SIZE, available=50, waited_s=waited_s))
    return replace(whole, rounds=tuple(rounds))


def test_a_card_says_how_long_text_was_read_again(record: Record) -> None:
    third, fifth = (replace(record.rounds[k], refit_s=4.0 + k) for k in (2, 4))
    rounds = (*record.rounds[:2], third, record.rounds[3], fifth, *record.rounds[5:])
    text = " ".join(text_of(render_run(replace(record, rounds=rounds))).split())
    assert "Text read again 14.0 s in 2 rounds, before the clients trained" in text


def test_the_cards_say_the_cohort_the_wait_and_the_lost(record: Record) -> None:
    text = " ".join(text_of(render_run(record)).split())
    assert "Cohort 2 of 60 41 different clients in all rounds" in text
    assert "Waiting 12.0 s 1 round waited for enough clients" in text
    assert "Text read again" not in text
    assert "1 left out, 1 of them lost on the air" in text
    assert totals(record).lost == 1
    assert f"Shown are the {MOST_SHOWN} clients most often drawn, of 41 that were." in text
    assert NOT_DRAWN not in text


def test_each_round_of_the_timeline_has_its_own_names(record: Record) -> None:
    page = render_run(record)
    data = json.loads(re.search(r'id="timeline-data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert data["cohorts"] == [[c.name for c in r.clients] for r in record.rounds]
    assert len(data["cohorts"][0]) == SIZE


def test_a_heat_map_has_a_clients_rate_in_its_own_row_and_nothing_where_it_was_away(
    record: Record,
) -> None:
    shown = shown_clients(record)
    names = [client.name for client in shown.rounds[0].clients]
    assert len(names) == MOST_SHOWN
    assert all([client.name for client in r.clients] == names for r in shown.rounds)
    page = render_run(record)
    for i in (0, 20):
        client = record.rounds[i].clients[1]
        assert f"{client.name}, round {i + 1}: " in page
        other = record.rounds[i + 1].clients[1]
        assert f"{other.name}, round {i + 1}: " not in page


def test_summaries_are_over_the_rounds_in_whose_cohort_a_client_was(record: Record) -> None:
    found = {one.name: one for one in client_summaries(record)}
    assert len(found) == 41
    first, second = record.rounds[0].clients
    assert found[second.name].bandwidth_hz == second.bandwidth_hz
    assert found[second.name].sat_out == 0
    mean = sum(r.clients[0].bandwidth_hz for r in record.rounds) / 40
    assert found[first.name].bandwidth_hz == pytest.approx(mean)
    # And of the record made ready for figures, the same.
    again = {one.name: one for one in client_summaries(shown_clients(record))}
    assert again[first.name].bandwidth_hz == pytest.approx(mean)


def test_a_record_without_cohorts_is_as_it_was(tmp_path: Path) -> None:
    fake_record.write_run(tmp_path / "run", clients=3, rounds_=2)
    whole = read_record(tmp_path / "run")
    assert shown_clients(whole) is whole
    assert "Cohort" not in text_of(render_run(whole))
