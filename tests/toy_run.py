"""A run without a model: a loop whose state is a random walk. `python toy_run.py DIR ROUNDS`.

Resumes where it finds its folder; a test kills it at random moments. With a third argument
it dies by itself: once at every call that changes the disk, each time in a folder of its own,
and then resumes there.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import fake_record
from airtune.record import RunDirectory


def main(folder: Path, rounds: int) -> None:
    values = fake_record.scenario_values(2, rounds)
    print("begun", flush=True)
    if folder.exists():
        opened = RunDirectory.resume(folder, scenario_values=values, method="exact")
    else:
        opened = RunDirectory.create(folder, scenario_values=values, method="exact")
    template = fake_record.rounds(fake_record.scenario_values(2, 1))[0]
    with opened as directory:
        if directory.finished:
            return
        directory.describe(fake_record.description(values))
        checkpoint = directory.load_checkpoint()
        start, elapsed_s, walk = 0, 0.0, np.zeros(5000)
        if checkpoint is not None:
            start, walk = checkpoint.round, checkpoint.tensors["walk"]
            elapsed_s = checkpoint.payload["elapsed_s"]
        for round in range(start + 1, rounds + 1):
            walk = walk + np.random.default_rng([7, round]).normal(size=walk.shape)
            elapsed_s += float(np.abs(walk).mean())
            directory.append_round(
                replace(
                    template,
                    round=round,
                    elapsed_s=elapsed_s,
                    eval_loss=float(walk.std()),
                    wall_s=time.perf_counter(),
                )
            )
            directory.save_checkpoint(round, {"walk": walk}, {"elapsed_s": elapsed_s})
        directory.finish()


CHANGES = ("write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "ftruncate")
DIED = 9


def die_everywhere(folder: Path, rounds: int) -> None:
    """Die at the n-th change of the disk in folder/n, resume there; stop when n is too many."""
    for n in itertools.count(1):
        target = folder / f"{n:04d}"
        target.mkdir()
        died = _in_child(target, rounds, die_at=n) == DIED
        if _in_child(target, rounds, die_at=None) != 0:
            sys.exit(f"cannot resume after dying at change {n}")
        if not died:
            return


def _in_child(folder: Path, rounds: int, *, die_at: int | None) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if die_at is not None:
        left = itertools.count(die_at - 1, -1)
        for name in CHANGES:
            setattr(os, name, _dying(name, getattr(os, name), left))
    main(folder, rounds)
    os._exit(0)


def _dying(name: str, change: Callable[..., Any], left: itertools.count[int]) -> Callable[..., Any]:
    def instead(*arguments: Any, **named: Any) -> Any:
        if next(left) == 0:
            if name == "write":  # half of it arrives
                change(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os._exit(DIED)
        return change(*arguments, **named)

    return instead


if __name__ == "__main__":
    (die_everywhere if len(sys.argv) > 3 else main)(Path(sys.argv[1]), int(sys.argv[2]))
