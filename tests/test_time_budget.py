"""A run with a budget of virtual time ends with the round that passes it, also after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from airtune.errors import InputError
from airtune.record import RoundRecord
from airtune.report.summary import headline
from airtune.rounds.observer import Observer
from airtune.rounds.running import run
from airtune.scenario import load_scenario


class Killed(Exception): ...


class Killer(Observer):
    """Ends the run as if the process had died after a round was on disk."""

    def round_ended(self, record: RoundRecord) -> None:
        if record.elapsed_s >= 1.0 and record.round == 2:
            raise Killed


def test_a_run_ends_with_the_first_round_at_or_after_its_time(tmp_path: Path) -> None:
    small = ["planning.method=none", "training.local_steps=1", "task.eval_examples=8"]
    full = run(load_scenario("tiny", [*small, "rounds=3"]), out=tmp_path / "full")
    budget_s = full.rounds[1].elapsed_s
    scenario = load_scenario("tiny", [*small, "rounds=3", f"time_budget_s={budget_s!r}"])
    ended = run(scenario, out=tmp_path / "ended")
    assert [r.eval_loss for r in ended.rounds] == [r.eval_loss for r in full.rounds[:2]]
    assert ended.finished
    assert (tmp_path / "ended" / "adapter" / "adapter_model.safetensors").is_file()
    assert headline(ended).startswith("2 rounds in")
    # Killed once its last round is on disk, it is over when it goes on.
    with pytest.raises(Killed):
        run(scenario, out=tmp_path / "killed", observer=Killer())
    resumed = run(scenario, out=tmp_path / "killed", resume=True)
    assert len(resumed.rounds) == 2
    assert resumed.finished


def test_a_falling_learning_rate_needs_a_known_number_of_rounds() -> None:
    with pytest.raises(InputError, match="time_budget_s is allowed with"):
        load_scenario("tiny", ["time_budget_s=5.0", "training.learning_rate_schedule=linear"])
