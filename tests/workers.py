"""What tests of a worker share: a small scenario, assignments, and adapters to compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from airtune.adapters.names import Adapter
from airtune.assignment import Assignment, Mode
from airtune.scenario import Scenario, load_scenario
from airtune.training.worker import Worker
from assigned import mode

Spy = Callable[[str], list[tuple[tuple[Any, ...], dict[str, Any]]]]
"""Given a name, the calls of it: positional and named arguments."""

SMALL = ["seed=11", "task.train_examples=64", "task.eval_examples=6", "training.local_steps=3",
         "task.client_eval_examples=2", "pruning.calibration_examples=4",
         "evaluation.batch_size=4"]  # fmt: skip


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *settings])


def worker_of_nine_rounds() -> Worker:
    return Worker(tiny("training.keep_optimizer=true", "rounds=9", "pruning.units=mlp",
                       "training.learning_rate_schedule=linear"))  # fmt: skip


def told(client: int, asked: Mode | None = None, pruning: float = 0.0) -> Assignment:
    asked = mode(4, steps=3) if asked is None else asked
    return Assignment(client, asked, pruning, 1e5, 1e5, 1e6, 1e4, None)


def same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, msg=name)


def moved(adapter: Adapter) -> Adapter:
    rng = torch.Generator().manual_seed(1)
    return {name: v + 0.05 * torch.randn(v.shape, generator=rng) for name, v in adapter.items()}
