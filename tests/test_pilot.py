"""The pilot: what its trials are, what their losses say, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from airtune.engines.local import LocalEngine
from airtune.errors import InputError, RunError
from airtune.planning.costs import read_costs
from airtune.rounds.pilot import WHOLE, Ended, costs_from, lost_share, run_pilot, trials_of
from airtune.scenario import Scenario, load_scenario


def tiny(*settings: str) -> Scenario:
    given = ["task.eval_examples=8", "training.local_steps=2", "devices.0.count=1", *settings]
    return load_scenario("tiny", given)


def curve(rounds: int, lost: float, noise: float = 0.0, seed: int = 0) -> list[float]:
    r = np.arange(rounds + 1) * (1.0 - lost)
    drawn = np.random.default_rng(seed).normal(0, noise, rounds + 1)
    return list(0.9 + 0.8 / (1 + r / 0.6) + drawn)


@pytest.mark.parametrize("lost", [0.0, 0.07, 0.4, 0.8, 1.0])
def test_a_known_loss_of_rounds_is_found(lost: float) -> None:
    assert lost_share(curve(6, 0.0), curve(6, lost)) == pytest.approx(lost, abs=0.01)
    noisy = [
        lost_share(curve(6, 0.0, 0.003, seed), curve(6, lost, 0.003, seed + 100))
        for seed in range(20)
    ]
    assert float(np.mean(noisy)) == pytest.approx(lost, abs=0.04)


@pytest.mark.parametrize(("most", "absent"), [(0.3, 0.6), (0.5, 0.75)])
def test_costs_are_the_trials_and_pairs_are_held_against_the_product(
    most: float, absent: float
) -> None:
    scenario = tiny()
    trials = trials_of(scenario)
    lost = {"rank 2": 0.1, "rank 1": 0.3, "bits 4": 0.02, "bits 2": 0.2, "steps 1": 0.5,
            "pruning 0.4": 0.25, "absent": 0.2, "absent, all but one": most}  # fmt: skip
    shares = {"absent": 1 / 3, "absent, all but one": 2 / 3}

    def of(name: str) -> float:
        left = [1 - lost.get(part, 0.0) for part in name.split(" + ")]
        return 1 - float(np.prod(left))

    ended = {
        (t.name, seed): Ended(tuple(curve(5, of(t.name))), shares.get(t.name, 0.0))
        for t in trials
        for seed in (0, 1)
    }
    made = costs_from(scenario, trials, ended, (0, 1), command="for a test", rounds=5)
    assert made.rank[4].cost == 0
    assert made.rank[2].cost == pytest.approx(0.1, abs=0.01)
    assert made.rank[1].cost == pytest.approx(0.3, abs=0.01)
    assert made.bits[2].cost == pytest.approx(0.2, abs=0.01)
    assert made.steps[0.5].cost == pytest.approx(0.5, abs=0.01)
    assert made.pruning[0.4].cost == pytest.approx(0.25, abs=0.01)
    # 0.2 with a third of the texts, or more where two thirds are left out: the larger counts.
    assert made.absent.cost == pytest.approx(absent, abs=0.02)
    assert made.rank[2].spread == 0
    assert {pair.knobs for pair in made.pairs} == {
        ("bits 4", "steps 1"), ("rank 1", "pruning 0.4"), ("steps 1", "pruning 0.4")}  # fmt: skip
    for pair in made.pairs:
        assert pair.measured == pytest.approx(pair.product, abs=0.02)


def test_a_run_that_does_not_learn_gives_no_costs() -> None:
    scenario = tiny()
    trials = trials_of(scenario)
    flat = {(t.name, 0): Ended((2.0, 2.0, 2.1), 0.0) for t in trials}
    with pytest.raises(RunError, match="do not lower the loss"):
        costs_from(scenario, trials, flat, (0,), command="", rounds=2)


def test_a_pilot_goes_on_where_it_stopped_and_its_file_is_read(tmp_path: Path) -> None:
    scenario, out = tiny("pruning.max_pruning=0.3"), tmp_path / "costs.json"
    said: list[str] = []

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 3:
            raise Stopped

    def pilot(say: object, rounds: int = 1) -> None:
        run_pilot(scenario, out=out, rounds=rounds, seeds=[0], engine=LocalEngine,
                  say=say, command="for a test")  # type: ignore[arg-type]  # fmt: skip

    with pytest.raises(Stopped):
        pilot(stop)
    assert not out.exists()
    with (tmp_path / "costs.json.trials.jsonl").open("a", encoding="utf-8") as stored_so_far:
        stored_so_far.write('{"mark": "cut off in the')
    pilot(said.append)
    trials = trials_of(scenario)
    assert len(said) == len(trials)  # none was run twice
    stored = [
        json.loads(x) for x in (tmp_path / "costs.json.trials.jsonl").read_text().splitlines()
    ]
    assert [entry["trial"] for entry in stored] == [trial.name for trial in trials]
    by_name = {entry["trial"]: entry["losses"] for entry in stored}
    assert by_name["rank 1"] != by_name[WHOLE] != by_name["steps 1"]
    assert {tuple(losses[:1]) for losses in by_name.values()} == {tuple(by_name[WHOLE][:1])}
    made = read_costs(out)
    assert made.provenance["losses"][WHOLE] == [by_name[WHOLE]]
    with pytest.raises(InputError, match="another scenario or number of rounds"):
        pilot(said.append, rounds=2)
