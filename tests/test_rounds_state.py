"""A state comes back from its checkpoint whole, with all that any kind of run puts into it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from airtune.planning.cohorts import DrawMemory
from airtune.record import Checkpoint
from airtune.rounds.clock import Turn
from airtune.rounds.control import Controls
from airtune.rounds.flight import Flight
from airtune.rounds.moments import StoredMoments
from airtune.rounds.state import State, no_moments, packed, restored
from airtune.scenario import load_scenario

A, B = "x/y.lora_A.weight", "x/y.lora_B.weight"


def adapter(value: float) -> dict[str, torch.Tensor]:
    return {A: torch.full((2, 3), value), B: torch.full((4, 2), -value)}


FLIGHT = Flight(
    turns=(Turn(1, 2, 3, 4.0, 5.0, 6.0, 7e5, 8e6, None, sent_bits=9.0, band_hz_s=10.0),),
    numbers={0: 1, 11: 2},
    adapters={3: adapter(6.0), 12: adapter(7.0)},
)
STATE = State(
    round=5,
    elapsed_s=12.5,
    adapter=adapter(1.0),
    optimizer_states={2: {"a/b|step": torch.tensor(4.0)}, 10: {"m": torch.ones(2)}},
    losses=(2.0, None, 1.5),
    pruning_losses=(0.1, 0.2),
    speeds=(None, 3e9),
    missed_bits=(77.0, 0.0),
    queues=(0.5, 0.0),
    held=adapter(2.0),
    held_ranks=(2, 0),
    server_moments={"first": adapter(3.0), "second": adapter(4.0)},
    controls=Controls(adapter(5.0), {0: adapter(5.5), 10: adapter(5.75)}),
    flight=FLIGHT,
)


def cell(folder: Path, *settings: str) -> Any:
    return SimpleNamespace(scenario=load_scenario("tiny", settings), folder=folder)


def back_from(state: State, cell: Any) -> State:
    tensors, payload = packed(state)
    found = restored(Checkpoint(round=state.round, tensors=tensors, payload=payload), cell)
    assert found is not None
    return found


def plain(value: Any) -> Any:
    """Return nested values with tensors as lists, so that they can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), value.tolist())
    if isinstance(value, Flight | Controls | Turn | DrawMemory):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return value


@pytest.mark.parametrize("key", [one.name for one in fields(State)])
def test_each_part_of_a_state_comes_back(key: str, tmp_path: Path) -> None:
    found = back_from(STATE, cell(tmp_path))
    assert plain(getattr(found, key)) == plain(getattr(STATE, key))


@pytest.mark.parametrize("key", [one.name for one in fields(State)])
def test_a_state_with_nothing_beside_it_comes_back(key: str, tmp_path: Path) -> None:
    bare = State(0, 0.0, adapter(0.5), {}, (1.0,))
    assert plain(getattr(back_from(bare, cell(tmp_path)), key)) == plain(getattr(bare, key))


def test_moments_on_disk_are_named_and_not_copied(tmp_path: Path) -> None:
    here = cell(tmp_path, "participation.cohort=2")
    before = State(
        4,
        1.0,
        adapter(1.0),
        StoredMoments(tmp_path, {3: 2, 12: 4}),
        (1.0,),
        draws=DrawMemory(7, (1e6, 2e6)),
    )
    tensors, _ = packed(before)
    assert {name.partition("/")[0] for name in tensors} == {"adapter"}
    found = back_from(before, here)
    assert isinstance(found.optimizer_states, StoredMoments)
    assert found.optimizer_states.folder == tmp_path
    assert found.optimizer_states.written == {3: 2, 12: 4}
    assert found.draws == DrawMemory(7, (1e6, 2e6))


def test_where_moments_are_kept_depends_on_who_takes_part(tmp_path: Path) -> None:
    assert no_moments(cell(tmp_path)) == {}
    stored = no_moments(cell(tmp_path, "participation.cohort=2"))
    assert isinstance(stored, StoredMoments)
    assert (stored.folder, dict(stored.written)) == (tmp_path, {})
