"""Which units are kept: the same number under every selection, others over rounds and clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.models.loading import shape_of
from airtune.models.workload import ModelShape
from airtune.pruning import calibrate, choose
from airtune.pruning.selection import Units, by_importance, rolling, rotating, selection_of
from small_models import small_model, text_batch

ORDER = np.random.default_rng(0).permutation(40)


@pytest.mark.parametrize("kept", [0, 1, 17, 39, 40])
def test_every_selection_keeps_as_many_different_units(kept: int) -> None:
    for select in (by_importance, rolling(7), rotating(np.random.default_rng(1))):
        chosen = select(ORDER, kept, 3)
        assert len(set(chosen.tolist())) == len(chosen) == kept
        assert set(chosen.tolist()) <= set(range(40))


def test_the_window_rolls_by_its_step_and_around() -> None:
    assert rolling(1)(ORDER, 10, 4).tolist() == list(range(10))
    assert rolling(2)(ORDER, 10, 4).tolist() == list(range(4, 14))
    assert rolling(9)(ORDER, 10, 4).tolist() == [*range(32, 40), 0, 1]
    covered = {unit for round in range(1, 11) for unit in rolling(round)(ORDER, 10, 4)}
    assert covered == set(range(40))


def test_channels_roll_by_their_multiple_and_groups_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model("llama-multi-head")
    shape = shape_of(model)
    statistics = calibrate(model, shape, [text_batch()])
    # Padding of larger models: a multiple of the number of groups would never roll them.
    monkeypatch.setattr(ModelShape, "channel_multiple", 4 * shape.kv_heads)
    kept: list[set[int]] = [set() for _ in range(shape.blocks)]
    cut = 0
    for round in range(1, shape.kv_heads + 1):
        structure = choose(statistics, shape, 0.25, "attention", select=rolling(round))
        for block, groups in enumerate(structure.groups):
            cut += 0 < len(groups) < shape.kv_heads
            kept[block] |= set(groups) or set(range(shape.kv_heads))
    assert cut > 0
    assert kept == [set(range(shape.kv_heads))] * shape.blocks
    asked = []

    def spy(order: Units, count: int, step: int) -> Units:
        asked.append((order.size, step))
        return order[:count]

    choose(statistics, shape, 0.3, select=spy)
    assert set(asked) == {(shape.mlp_channels, 4 * shape.kv_heads), (shape.kv_heads, 1)}


def test_rotation_exchanges_only_units_near_the_threshold() -> None:
    seen: set[int] = set()
    for round in range(1, 30):
        select = selection_of("rotating", seed=3, round=round, client=1)
        chosen = set(select(ORDER, 20, 1).tolist())
        assert set(ORDER[:15].tolist()) <= chosen  # a quarter of 20 may go
        assert not chosen & set(ORDER[25:].tolist())
        seen |= chosen
    assert seen == set(ORDER[:25].tolist())


def test_rotation_differs_by_round_and_client_and_repeats_by_seed() -> None:
    def chosen(round: int, client: int) -> list[int]:
        select = selection_of("rotating", seed=3, round=round, client=client)
        return sorted(select(ORDER, 20, 1).tolist())

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
