"""A run without a model: a loop whose state is a random walk. `python toy_run.py DIR ROUNDS`.

Resumes where it finds its folder; a test kills it at random moments.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

import fake_record
from airtune.record import RunDirectory


def main(folder: Path, rounds: int) -> None:
    values = fake_record.scenario_values(2, rounds)
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
