"""Which units are kept: the same number under every selection, others over rounds and clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.pruning.selection import by_importance, rolling, rotating, selection_of

ORDER = np.random.default_rng(0).permutation(40)


@pytest.mark.parametrize("kept", [0, 1, 17, 39, 40])
def test_every_selection_keeps_as_many_different_units(kept: int) -> None:
    for select in (by_importance, rolling(7, 3), rotating(np.random.default_rng(1))):
        chosen = select(ORDER, kept)
        assert len(set(chosen.tolist())) == len(chosen) == kept
        assert set(chosen.tolist()) <= set(range(40))


def test_the_window_rolls_by_its_multiple_and_around() -> None:
    assert rolling(1, 4)(ORDER, 10).tolist() == list(range(10))
    assert rolling(2, 4)(ORDER, 10).tolist() == list(range(4, 14))
    assert rolling(9, 4)(ORDER, 10).tolist() == [*range(32, 40), 0, 1]
    covered = {unit for round in range(1, 11) for unit in rolling(round, 4)(ORDER, 10)}
    assert covered == set(range(40))


def test_rotation_exchanges_only_units_near_the_threshold() -> None:
    seen: set[int] = set()
    for round in range(1, 30):
        select = selection_of("rotating", seed=3, round=round, client=1, multiple=1)
        chosen = set(select(ORDER, 20).tolist())
        assert set(ORDER[:15].tolist()) <= chosen  # a quarter of 20 may go
        assert not chosen & set(ORDER[25:].tolist())
        seen |= chosen
    assert seen == set(ORDER[:25].tolist())


def test_rotation_differs_by_round_and_client_and_repeats_by_seed() -> None:
    def chosen(round: int, client: int) -> list[int]:
        select = selection_of("rotating", seed=3, round=round, client=client, multiple=1)
        return sorted(select(ORDER, 20).tolist())

    assert chosen(1, 1) == chosen(1, 1)
    assert chosen(1, 1) != chosen(2, 1)
    assert chosen(1, 1) != chosen(1, 2)


def test_a_run_under_every_selection_learns_and_they_differ(tmp_path: Path) -> None:
    losses = {}
    for name in ("importance", "rolling", "rotating"):
        settings = ["rounds=2", "task.eval_examples=8", f"pruning.selection={name}"]
        settings += ["planning.method=uniform", "planning.kappa=0.05"]
        record = at.run(at.load_scenario("tiny", settings), out=tmp_path / name)
        assert min(client.pruning or 0.0 for client in record.rounds[-1].clients) > 0.1
        losses[name] = record.rounds[-1].eval_loss
        assert record.description is not None
        assert losses[name] < record.description.initial_eval_loss  # type: ignore[operator]
    assert len(set(losses.values())) == 3
