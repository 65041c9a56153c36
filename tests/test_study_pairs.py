"""Methods are compared seed by seed, on all seeds that both have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import fake_record
from airtune.record import RunDirectory
from airtune.study import load_study
from airtune.study.comparison import compare
from airtune.study.console import claim_text
from airtune.study.jobs import jobs_of
from airtune.study.results import Result, results_of
from airtune.study.running import folder_of
from airtune.study.statistics import BETTER, OPEN
from test_study import made


def test_methods_are_compared_on_the_same_seed_and_on_every_seed() -> None:
    # Seeds differ far more than methods do: a pair of two seeds would show nothing. The seeds of
    # the two stand in different orders, so that pairs are not those of the same place.
    seeds = {0: (1.0, 10.0), 1: (4.0, 100.0), 2: (2.0, 1000.0), 3: (8.0, 20.0), 4: (3.0, 500.0)}
    gains = (0.10, 0.12, 0.09, 0.11, 0.08)
    results: list[Result] = []
    for seed, (loss, round_s) in seeds.items():
        results.append(made("fedit", "baseline", [9.0, loss], round_s, seed))
    for seed, (loss, round_s) in reversed(seeds.items()):
        own = [9.0, loss - gains[seed]]
        results.append(made("mine", "joint", own, round_s * (0.5 + gains[seed]), seed))
    (comparison,) = compare(results)
    mine = next(one for one in comparison.standings if one.method == "mine")
    assert mine.loss.seeds == mine.time.seeds == mine.reached == 5
    assert mine.loss.value == pytest.approx(-0.1)
    assert mine.loss.verdict == mine.time.verdict == BETTER
    assert mine.loss.low == pytest.approx(-0.1196, abs=1e-4)  # t(4) = 2.776, s = 0.01581
    assert mine.time.value == pytest.approx(0.5998, abs=1e-3)


def test_runs_that_are_not_done_yet_are_not_lost_and_failed_ones_are() -> None:
    def results(status: str, error: str | None) -> list[Result]:
        found = [made("mine", "joint", [9.0, 1.0 - 0.01 * seed], seed=seed) for seed in range(5)]
        for seed in range(5):
            one = made("fedit", "baseline", [9.0, 2.0], seed=seed)
            found.append(one if seed < 3 else replace(one, status=status, error=error, loss=()))
        return found

    for status, error, lost in (("missing", None, 0), ("begun", None, 0), ("failed", "no", 2)):
        (comparison,) = compare(results(status, error))
        mine = next(one for one in comparison.standings if one.method == "mine")
        assert (mine.loss.seeds, mine.loss.lost) == (3, lost)
        assert (mine.loss.verdict == BETTER) == (not lost)


def test_a_reference_that_misses_the_target_leaves_its_seeds_open() -> None:
    # The target is the best baseline's. On two of eight seeds the reference does not reach it.
    results: list[Result] = []
    for seed in range(8):
        results.append(made("best", "baseline", [9.0, 1.0], seed=seed))
        results.append(made("ref", "baseline", [9.0, 1.0 if seed < 6 else 1.5], seed=seed))
        slower = 12.0 + 0.1 * seed if seed < 6 else 1.0
        results.append(made("mine", "joint", [9.0, 0.9], slower, seed))
    (comparison,) = compare(results, "ref")
    mine = next(one for one in comparison.standings if one.method == "mine")
    assert (mine.time.seeds, mine.time.lost, mine.loss.lost) == (6, 2, 0)
    assert mine.time.low > 1.0
    assert mine.time.verdict == OPEN
    assert "did not reach the target" in claim_text(mine.time)


def test_energy_of_the_record_reaches_the_results(tmp_path: Path) -> None:
    jobs = jobs_of(load_study("tiny"))[:2]
    known, unknown = (folder_of(tmp_path, job.key) for job in jobs)
    values = fake_record.scenario_values(2, 3)
    for folder, joules in ((known, (1.0, 2.0, 4.0)), (unknown, (1.0, None, 4.0))):
        with RunDirectory.create(folder, scenario_values=values, method="exact") as directory:
            directory.describe(fake_record.description(values))
            for one, energy_j in zip(fake_record.rounds(values), joules, strict=True):
                directory.append_round(replace(one, energy_j=energy_j))
            directory.finish()
    results = results_of(load_study("tiny"), jobs, tmp_path)
    assert [one.energy_j for one in results] == [(0.0, 1.0, 3.0, 7.0), ()]
